"""Sequential models by name: one file each, with its options in options.py and a line in the table there."""

from typing import TYPE_CHECKING

from csrec_dist.lazy import attributes

if TYPE_CHECKING:
    from csrec_dist.models.base import SequentialModel, TrainingStates, picked
    from csrec_dist.models.inputs import TrainingInputs
    from csrec_dist.models.options import ModelConfig, config_class
    from csrec_dist.models.registry import MODELS, build, load, model_class, register
    from csrec_dist.models.table import ItemTable

__all__ = [
    "MODELS",
    "ItemTable",
    "ModelConfig",
    "SequentialModel",
    "TrainingInputs",
    "TrainingStates",
    "build",
    "config_class",
    "load",
    "model_class",
    "picked",
    "register",
]

__getattr__ = attributes(
    __name__,
    {
        "csrec_dist.models.options": ["ModelConfig", "config_class"],
        "csrec_dist.models.base": ["SequentialModel", "TrainingStates", "picked"],
        "csrec_dist.models.inputs": ["TrainingInputs"],
        "csrec_dist.models.registry": ["MODELS", "build", "load", "model_class", "register"],
        "csrec_dist.models.table": ["ItemTable"],
    },
)
