"""The models' classes by name: how one is built and loaded."""

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from csrec_dist.models import pretrained
from csrec_dist.models.base import SequentialModel
from csrec_dist.models.options import CONFIGS, ModelConfig, config_class
from csrec_dist.models.slices import sliced

if TYPE_CHECKING:
    from csrec_dist.distributed.catalog import CatalogSlice


def model_class(name: str) -> type[SequentialModel]:
    """The class of the model called `name`, that of its file which has its options; UserError when there is none."""
    options = config_class(name)
    classes = vars(import_module(f"csrec_dist.models.{name}")).values()
    return next(each for each in classes if isinstance(each, type) and getattr(each, "Config", None) is options)


MODELS: dict[str, type[SequentialModel]] = {name: model_class(name) for name in CONFIGS}


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
