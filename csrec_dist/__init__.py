"""csrec_dist: distributed training of sequential recommenders with confident soft labels (CSRec)."""

__version__ = "0.1.0"
