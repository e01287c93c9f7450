"""The models' classes by name: how one is built and loaded, and how a class of others becomes known."""

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import torch

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.distributed.groups import ALONE, Group
from csrec_dist.errors import UserError
from csrec_dist.models import pretrained
from csrec_dist.models.base import SequentialModel
from csrec_dist.models.options import CONFIGS, ModelConfig, config_class
from csrec_dist.models.table import sliced

ModelT = TypeVar("ModelT", bound=SequentialModel)


def _own_class(name: str) -> type[SequentialModel]:
    """Of the classes in a model's file that which has its options."""
    classes = vars(import_module(f"csrec_dist.models.{name}")).values()
    return next(each for each in classes if isinstance(each, type) and getattr(each, "Config", None) is CONFIGS[name])


MODELS: dict[str, type[SequentialModel]] = {name: _own_class(name) for name in CONFIGS}


def model_class(name: str) -> type[SequentialModel]:
    """The class of the model called `name`; UserError when there is none."""
    config_class(name)
    return MODELS[name]


def register(model: type[ModelT]) -> type[ModelT]:
    """Make a model of your own known by the name in its `Config`; a decorator of its class.

    Every process that uses the model registers it first: all ranks of a launch run the same script. For the command
    line, a package offers it as an entry point of the group csrec_dist.models. A cell that is run again replaces it.

    Raises:
        UserError: the class has no `Config` with a name of its own, or another model has that name.

    >>> from typing import Literal
    >>> class MeanConfig(ModelConfig):
    ...     name: Literal["mean"] = "mean"
    ...     dropout: float = 0.0
    >>> @register
    ... class Mean(SequentialModel):
    ...     Config = MeanConfig
    ...     def __init__(self, config, num_items, max_length):
    ...         super().__init__(config, num_items, max_length)
    ...         _ = torch.nn.init.xavier_normal_(self.item_table.weight)
    ...     def encode(self, histories):
    ...         vectors = self.item_table(histories).cumsum(1)  # padding has the vector 0
    ...         return vectors / (histories > 0).cumsum(1).clamp(min=1).unsqueeze(2)
    >>> build(MeanConfig(width=8), num_items=5, max_length=3, seed=0).score([[1, 2]]).shape
    torch.Size([1, 6])
    """
    config = getattr(model, "Config", None)
    name = config.model_fields["name"].default if config is not None and issubclass(config, ModelConfig) else None
    if config is None or not isinstance(name, str):
        raise UserError(
            f"{model.__name__} needs a Config: a subclass of csrec_dist.models.ModelConfig with a name of its own, "
            "such as name: Literal['mine'] = 'mine', and a dropout."
        )
    known = MODELS.get(name, model)
    if (known.__module__, known.__qualname__) != (model.__module__, model.__qualname__):
        raise UserError(
            f"There is a model {name!r} already, {known.__module__}.{known.__qualname__}; choose another name."
        )
    CONFIGS[name], MODELS[name] = config, model
    return model


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
