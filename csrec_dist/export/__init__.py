"""A trained model as files for other programs (ONNX, torch.export, item vectors, faiss), checked when written."""

from typing import TYPE_CHECKING

from csrec_dist.lazy import attributes

if TYPE_CHECKING:
    from csrec_dist.export.writing import export_model, histories_to_check

__all__ = ["FORMATS", "export_model", "histories_to_check"]

FORMATS = ("onnx", "pt2", "flat", "faiss")

__getattr__ = attributes(__name__, {"csrec_dist.export.writing": ["export_model", "histories_to_check"]})
