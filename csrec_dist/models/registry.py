"""The models' classes by name: how one is built and loaded."""

from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.distributed.groups import ALONE, Group
from csrec_dist.models import pretrained
from csrec_dist.models.base import SequentialModel
from csrec_dist.models.options import CONFIGS, ModelConfig, config_class
from csrec_dist.models.table import sliced


def model_class(name: str) -> type[SequentialModel]:
    """The class of the model called `name`, that of its file which has its options; UserError when there is none."""
    options = config_class(name)
    classes = vars(import_module(f"csrec_dist.models.{name}")).values()
    return next(model for model in classes if isinstance(model, type) and getattr(model, "Config", None) is options)


MODELS: dict[str, type[SequentialModel]] = {name: model_class(name) for name in CONFIGS}


def build(config: ModelConfig, num_items: int, max_length: int, seed: int, group: Group = ALONE) -> SequentialModel:
    """A new model on the CPU whose weights depend on the arguments only, its item table split over `group`.

    The caller's random state is neither used nor changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        make = partial(model_class(config.name), config, num_items, max_length)
        return sliced(make, CatalogSlice.of(num_items, group))


def load(folder: Path | str, group: Group = ALONE, *, is_mapped: bool = False) -> SequentialModel:
    """The model that `save_pretrained` wrote into `folder`, whatever its class; its item table split over `group`.

    `is_mapped` is explained in `SequentialModel.from_pretrained`.

    Raises:
        UserError: the folder holds no model, an unknown one, or a broken one.
    """
    described = pretrained.read_description(folder)
    return model_class(described.model_type).from_pretrained(folder, group, is_mapped=is_mapped)
