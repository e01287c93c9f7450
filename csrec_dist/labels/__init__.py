"""Soft labels of the teachers: written by all ranks into sharded safetensors files, read back by example id."""

from typing import TYPE_CHECKING

from csrec_dist.lazy import attributes

if TYPE_CHECKING:
    from csrec_dist.labels.cache import LabelCache, label_fields, with_labels
    from csrec_dist.labels.choose import Reading
    from csrec_dist.labels.combine import live_labels
    from csrec_dist.labels.contents import info, label_bytes, verify
    from csrec_dist.labels.format import LabelIndex, LabelMember, read_index
    from csrec_dist.labels.options import COMBINES, Combine, combining_problem
    from csrec_dist.labels.popularity import PopularityLabels, popularity_labels, target_counts
    from csrec_dist.labels.writer import write_labels
    from csrec_dist.losses.soft_labels import DenseLabels, FactoredLabels, LabelReader, MixtureLabels, SoftLabels
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
    "Reading",
    "SoftLabels",
    "TopKLabels",
    "combining_problem",
    "info",
    "label_bytes",
    "label_fields",
    "live_labels",
    "popularity_labels",
    "read_index",
    "target_counts",
    "verify",
    "with_labels",
    "write_labels",
]

__getattr__ = attributes(
    __name__,
    {
        "csrec_dist.labels.cache": ["LabelCache", "label_fields", "with_labels"],
        "csrec_dist.labels.choose": ["Reading"],
        "csrec_dist.labels.combine": ["live_labels"],
        "csrec_dist.labels.contents": ["info", "label_bytes", "verify"],
        "csrec_dist.labels.format": ["LabelIndex", "LabelMember", "read_index"],
        "csrec_dist.labels.options": ["COMBINES", "Combine", "combining_problem"],
        "csrec_dist.labels.popularity": ["PopularityLabels", "popularity_labels", "target_counts"],
        "csrec_dist.labels.writer": ["write_labels"],
        "csrec_dist.losses.soft_labels": [
            "DenseLabels",
            "FactoredLabels",
            "LabelReader",
            "MixtureLabels",
            "SoftLabels",
        ],
        "csrec_dist.losses.top_k_labels": ["TopKLabels"],
    },
)
