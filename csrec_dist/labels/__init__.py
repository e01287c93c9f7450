"""Soft labels of the teachers: written by all ranks into sharded safetensors files, read back by example id."""

from csrec_dist.labels.cache import LabelCache, LabelReader, info, verify
from csrec_dist.labels.choose import Wanted
from csrec_dist.labels.combine import COMBINES, Combine, combining_problem
from csrec_dist.labels.format import LabelIndex, LabelMember, label_bytes, read_index
from csrec_dist.labels.labeller import live_labels
from csrec_dist.labels.popularity import PopularityLabels, popularity_labels, target_counts
from csrec_dist.labels.writer import write_labels
from csrec_dist.losses.soft_labels import DenseLabels, FactoredLabels, MixtureLabels, SoftLabels
from csrec_dist.losses.top_k_labels import TopKLabels

__all__ = [
    "COMBINES",
    "Combine",
    "DenseLabels",
    "FactoredLabels",
    "LabelCache",
    "LabelIndex",
    "LabelMember",
    "LabelReader",
    "MixtureLabels",
    "PopularityLabels",
    "SoftLabels",
    "TopKLabels",
    "Wanted",
    "combining_problem",
    "info",
    "label_bytes",
    "live_labels",
    "popularity_labels",
    "read_index",
    "target_counts",
    "verify",
    "write_labels",
]
