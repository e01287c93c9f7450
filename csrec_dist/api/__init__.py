"""The Python API: prepared datasets, runs and labels, for scripts and notebooks, by the code of the command line."""

from typing import TYPE_CHECKING

from csrec_dist.lazy import attributes

if TYPE_CHECKING:
    from csrec_dist.api.dataset import Dataset
    from csrec_dist.api.run import CSRec, load_labels

__all__ = ["CSRec", "Dataset", "load_labels"]

__getattr__ = attributes(
    __name__,
    {
        "csrec_dist.api.dataset": ["Dataset"],
        "csrec_dist.api.run": ["CSRec", "load_labels"],
    },
)
