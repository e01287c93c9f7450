"""A trained model's weights for a catalog with other items: known items keep theirs, new ones get some by a rule."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from csrec_dist.errors import UserError
from csrec_dist.models.base import SequentialModel
from csrec_dist.models.options import ModelConfig
from csrec_dist.models.pretrained import Description, read_description
from csrec_dist.models.registry import build, model_class
from csrec_dist.models.weight_files import StoredWeights

BLOCK_ROWS = 1 << 16
"""Rows of a stored table in memory at once."""
TABLE = "item_table."


@torch.no_grad()
def extended(model: SequentialModel, num_items: int) -> SequentialModel:
    """The model, in evaluation mode, for a catalog whose first items are its own and that goes on after them.

    A new item gets the mean vector and the mean bias of all known ones. As logits are products with these vectors, its
    logit is the mean of theirs, whatever the history, and exp(logit) their geometric mean: the model is neutral about
    it. Known items keep their logits, and in a history a new item counts as the average item. Only a DreamRec's states
    change a little, because its item norm is the mean over all vectors.

    The item table must be whole.
    """
    assert model.item_table.catalog.is_whole, "the mean is that of the whole table"
    assert num_items >= model.num_items
    larger = build(model.config, num_items, model.max_length, seed=0)
    weights = model.state_dict()
    for name in [name for name in weights if name.startswith(TABLE)]:
        rows = weights[name]
        mean = rows.mean(0, keepdim=True, dtype=torch.float64).to(rows.dtype)
        weights[name] = torch.cat([rows, mean.expand(num_items - len(rows), *rows.shape[1:])])
    larger.load_state_dict(weights)
    return larger.eval()


@torch.no_grad()
def start_from(model: SequentialModel, folder: Path, rows: np.ndarray) -> None:
    """Give a new model the weights of the trained one in a folder.

    Items that the trained model does not know keep what the new one drew for them. Where the item table is split, each
    rank reads the rows of its slice.

    Args:
        rows: [V] int64, for each item the row of the trained model's table, or −1 where it has none.

    Raises:
        UserError: `require_architecture` does, or the weights are damaged.
    """
    description = require_architecture(folder, model.config, model.max_length)
    config = description.parse_config(type(model.config), folder)
    shapes = description.without_memory(model_class(config.name), config, folder).state_dict()
    stored = StoredWeights(folder)
    stored.require({name: tuple(tensor.shape) for name, tensor in shapes.items()})
    stored.require_config(description.fingerprint(config))
    slice_rows = torch.from_numpy(rows[model.item_table.catalog.rows])
    for name, tensor in model.state_dict().items():
        if name.startswith(TABLE):
            _fill(tensor, slice_rows, stored, name, description.num_items)
        else:
            tensor.copy_(stored.read(name))


def require_architecture(folder: Path, config: ModelConfig, max_length: int) -> Description:
    """What the folder's config.json says; UserError that names what differs unless the model is of this architecture.

    Dropout and what else of the options is `FREE` may differ.
    """
    description = read_description(folder)
    if description.model_type != config.name:
        raise UserError(
            f"{folder} holds a {description.model_type}, and the training is one of a {config.name}: it cannot start "
            f"from there. Set model.name to {description.model_type}, or start from a {config.name}."
        )
    stored = description.parse_config(type(config), folder).model_dump() | {"max_length": description.max_length}
    expected = config.model_dump() | {"max_length": max_length}
    changed = [key for key in expected if stored[key] != expected[key] and key not in config.FREE]
    if changed:
        names = {key: f"model.{key}" for key in changed} | {"max_length": "the longest history (dataset.window - 1)"}
        listed = "; ".join(f"{names[key]} is {stored[key]} there, {expected[key]} here" for key in changed)
        raise UserError(
            f"The training cannot start from {folder}, which has another architecture: {listed}. Set them to what they "
            "are there, or leave training.init_from out."
        )
    return description


def _fill(tensor: Tensor, rows: Tensor, stored: StoredWeights, name: str, num_stored: int) -> None:
    """Copy row `rows[i]` of a stored table to row i of the tensor, a block at a time; −1 leaves a row as it is."""
    for first in range(0, num_stored, BLOCK_ROWS):
        stop = min(first + BLOCK_ROWS, num_stored)
        index = ((rows >= first) & (rows < stop)).nonzero().squeeze(1)
        if len(index):
            tensor[index] = stored.read(name, slice(first, stop))[rows[index] - first]
