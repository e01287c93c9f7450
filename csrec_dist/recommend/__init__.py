"""Lists of items from a trained model: for users and histories in Python, for all users as a Parquet file."""

from csrec_dist.recommend.lists import recommend
from csrec_dist.recommend.recommender import Recommender

__all__ = ["Recommender", "recommend"]
