"""Sequential models by name: one file each, and one line in `MODELS`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from csrec_dist.errors import UserError
from csrec_dist.models import pretrained
from csrec_dist.models.base import ItemTable, ModelConfig, SequentialModel, TrainingInputs, TrainingStates, picked
from csrec_dist.models.bert4rec import BERT4Rec
from csrec_dist.models.cl4srec import CL4SRec
from csrec_dist.models.dreamrec import DreamRec
from csrec_dist.models.gru4rec import GRU4Rec
from csrec_dist.models.narm import NARM
from csrec_dist.models.nextitnet import NextItNet
from csrec_dist.models.sasrec import SASRec
from csrec_dist.models.slices import sliced
from csrec_dist.models.srgnn import SRGNN

if TYPE_CHECKING:
    from csrec_dist.distributed.catalog import CatalogSlice

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
    "picked",
]

MODELS: dict[str, type[SequentialModel]] = {
    "bert4rec": BERT4Rec,
    "cl4srec": CL4SRec,
    "dreamrec": DreamRec,
    "gru4rec": GRU4Rec,
    "narm": NARM,
    "nextitnet": NextItNet,
    "sasrec": SASRec,
    "srgnn": SRGNN,
}


def model_class(name: str) -> type[SequentialModel]:
    """The class of the model called `name`; UserError when there is none."""
    if name not in MODELS:
        raise UserError(f"There is no model {name!r}; choose one of {', '.join(sorted(MODELS))}.")
    return MODELS[name]


def config_class(name: str) -> type[ModelConfig]:
    """The config of the model called `name`; UserError when there is none."""
    return model_class(name).Config


def build(
    config: ModelConfig, num_items: int, max_length: int, seed: int, catalog: "CatalogSlice | None" = None
) -> SequentialModel:
    """A new model on the CPU whose weights depend on the arguments only; with `catalog`, with its slice of the items.

    The caller's random state is neither used nor changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        make = partial(model_class(config.name), config, num_items, max_length)
        return make() if catalog is None else sliced(make, catalog)


def load(folder: Path | str, catalog: "CatalogSlice | None" = None) -> SequentialModel:
    """The model that `save_pretrained` wrote into `folder`, whatever its class; with `catalog`, its slice of the items.

    Raises:
        UserError: the folder holds no model, an unknown one, or a broken one.
    """
    return model_class(pretrained.read_description(folder).model_type).from_pretrained(folder, catalog)
