"""The base class of sequential models: a config, an item table, and states for all positions of a window."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csrec_dist.data.batches import Batch
from csrec_dist.distributed.catalog import CatalogSlice, slices_of
from csrec_dist.distributed.groups import ALONE, Group
from csrec_dist.models import pretrained
from csrec_dist.models.histories import pad_histories
from csrec_dist.models.inputs import TrainingInputs, of_examples, pick
from csrec_dist.models.options import ModelConfig
from csrec_dist.models.table import ItemTable
from csrec_dist.models.weight_files import StoredWeights


class TrainingStates(NamedTuple):
    """A model's output for the loss: n states [n, d], whose targets and weights [n] are those of its inputs.

    The first of them are the states of `inputs.examples`, which may have soft labels. A model that may have further
    states sets `more_than_examples` in every batch, even if it has none: all ranks must compute the same losses.
    `views` are two states [M, d] of each of M windows, from two disturbed copies of it, which a contrastive loss draws
    towards each other; windows of weight 0 in `view_weights` [M] are padding.
    """

    states: Tensor
    more_than_examples: bool = False
    views: tuple[Tensor, Tensor] | None = None
    view_weights: Tensor | None = None


def picked(mask: Tensor, *values: Tensor) -> list[Tensor]:
    """The rows [n, ..] of each of `values` [B, L, ..] where `mask` [B, L] is set, for labelling and evaluation."""
    # The host waits for a GPU once, to learn n; `value[mask]` would wait for each of the values.
    index = mask.flatten().nonzero().squeeze(1)
    return [value.flatten(0, 1).index_select(0, index) for value in values]


class SequentialModel(nn.Module, ABC):
    """Maps histories to states; a state's logits are its products with the item table.

    A model knows no rank (but through its item table), device, loss or file. A new one is in training mode, as torch's
    modules are; one that was loaded is in evaluation mode. `encode` and `score` drop units out while `training` is set.
    """

    Config: ClassVar[type[ModelConfig]]
    has_views: ClassVar[bool] = False
    """Whether its training states come with `views`."""
    has_many_shapes: bool = False
    """Whether the sizes of its products in training change from batch to batch; oneDNN compiles a kernel for each."""

    def __init__(self, config: ModelConfig, num_items: int, max_length: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.max_length = max_length
        self.item_table = ItemTable(num_items, config.width)

    @abstractmethod
    def encode(self, histories: Tensor) -> Tensor:
        """States [B, L, d] of histories [B, L] (int64, right-padded with 0, L ≤ max_length).

        The state at position l is that of items[:, :l+1]. States at padding positions are finite
        and mean nothing.
        """

    def encode_last(self, histories: Tensor) -> Tensor:
        """States [B, d] of the whole histories [B, L] (as in `encode`); arbitrary for a history without items."""
        last = ((histories != 0).sum(1) - 1).clamp(min=0)
        return self.encode(histories)[torch.arange(histories.shape[0], device=histories.device), last]

    def inputs(self, batch: Batch, seed: int, *, padded: bool = False) -> TrainingInputs:
        """The inputs of `training_states` for a batch, in the step of this seed, on the host.

        If `padded`, the tensors have one of a few shapes for the batch's numbers of rows and positions: states of
        weight 0 fill them up.
        """
        return of_examples(batch, seed, padded=padded)

    def training_states(self, inputs: TrainingInputs) -> TrainingStates:
        """The states to train: by default those of all examples, from one pass. The host does not wait for a GPU."""
        states = pick(self.encode(inputs.histories), inputs.positions.index, inputs.positions.inverse)
        return TrainingStates(states)

    def forward(self, histories: Tensor) -> Tensor:
        """The same as `encode`, so that wrappers around the module see the call."""
        return self.encode(histories)

    def score(self, histories: Sequence[Sequence[int]] | Tensor) -> Tensor:
        """Logits [B, V+1] over the catalog for the item after each history; column 0 is −inf.

        Args:
            histories: lists of item ids, oldest first, or an integer tensor [B, L] right-padded
                with 0. Of a history longer than max_length the latest items count.

        Raises:
            UserError: an empty history, or an item outside 1…V.
        """
        assert self.item_table.catalog.is_whole, "a slice of the catalog cannot score the whole"
        items, _ = pad_histories(histories, self.num_items, self.max_length)
        logits = self.item_table.logits(self.encode_last(items.to(self.item_table.weight.device)))
        return F.pad(logits, (1, 0), value=-math.inf)

    def save_pretrained(self, folder: Path | str, *, sharded: bool = False) -> None:
        """Write model.safetensors and config.json into `folder`.

        Where the item table is split, all ranks of the catalog group call this; the first writes the whole table, one
        block of rows at a time. The file's bytes do not depend on the split. If `sharded`, each of them writes a file
        with its rows instead, and the first an index of the files.
        """
        description = pretrained.describe(self, self.config, self.num_items, self.max_length)
        catalog = self.item_table.catalog
        write = pretrained.write_sharded if sharded and not catalog.is_whole else pretrained.write
        write(folder, self.state_dict(), description, slices_of(self), catalog)

    @classmethod
    def from_pretrained(cls, folder: Path | str, group: Group = ALONE, *, is_mapped: bool = False) -> Self:
        """The model that `save_pretrained` wrote, on the CPU, in evaluation mode; its item table split over `group`.

        With `is_mapped` the weights of a model in one file are not copied into memory but read from the file as they
        are used, for which it has to stay.

        Raises:
            UserError: the folder holds no model, another model than `cls`, one whose weights do not fit its config or
                are not finite, or a broken one.
        """
        description = pretrained.read_description(folder)
        description.require_architecture(cls.__name__, folder)
        config = description.parse_config(cls.Config, folder)
        model = description.without_memory(cls, config, folder)
        weights = StoredWeights(folder)
        unread = model.state_dict()
        weights.require({name: tuple(tensor.shape) for name, tensor in unread.items()})
        weights.require_config(description.fingerprint(config))
        catalog = CatalogSlice.of(description.num_items, group)
        model.item_table.take(catalog)
        rows = dict.fromkeys(slices_of(model), catalog.rows)
        # Not by to_empty, for which torch imports its symbolic shapes: a second and a half.
        state = {name: weights.read(name, rows.get(name)) for name in unread}
        if not is_mapped:
            state = {name: tensor.to(unread[name].dtype, copy=True) for name, tensor in state.items()}
        model.load_state_dict(state, assign=True)
        return model.eval()
