"""Lists of items from a trained model: for users and histories in Python, for all users as a Parquet file."""

from typing import TYPE_CHECKING

from csrec_dist.lazy import attributes

if TYPE_CHECKING:
    from csrec_dist.recommend.lists import recommend
    from csrec_dist.recommend.recommender import Recommender

__all__ = ["Recommender", "recommend"]

__getattr__ = attributes(
    __name__,
    {"csrec_dist.recommend.lists": ["recommend"], "csrec_dist.recommend.recommender": ["Recommender"]},
)
