"""csrec_dist: distributed training of sequential recommenders with confident soft labels (CSRec)."""

from typing import TYPE_CHECKING

from csrec_dist.lazy import attributes

if TYPE_CHECKING:
    from csrec_dist.api import CSRec, Dataset, load_labels
    from csrec_dist.losses import soft_label_loss
    from csrec_dist.recommend import Recommender

__all__ = ["CSRec", "Dataset", "Recommender", "__version__", "load_labels", "soft_label_loss"]

__version__ = "0.1.0"

__getattr__ = attributes(
    __name__,
    {
        "csrec_dist.api.dataset": ["Dataset"],
        "csrec_dist.api.run": ["CSRec", "load_labels"],
        "csrec_dist.losses": ["soft_label_loss"],
        "csrec_dist.recommend": ["Recommender"],
    },
)


def __dir__() -> list[str]:
    return __all__
