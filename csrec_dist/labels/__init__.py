"""Soft labels of the teachers: written by all ranks into sharded safetensors files, read back by example id."""

from csrec_dist.labels.cache import LabelCache
from csrec_dist.labels.checking import info, verify
from csrec_dist.labels.index import LabelIndex, LabelMember, label_bytes, read_index
from csrec_dist.labels.labeller import live_labels
from csrec_dist.labels.writing import write_labels
from csrec_dist.objectives.soft_labels import DenseLabels, FactoredLabels, SoftLabels

__all__ = [
    "DenseLabels",
    "FactoredLabels",
    "LabelCache",
    "LabelIndex",
    "LabelMember",
    "SoftLabels",
    "info",
    "label_bytes",
    "live_labels",
    "read_index",
    "verify",
    "write_labels",
]
