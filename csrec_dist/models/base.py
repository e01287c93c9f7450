"""What every sequential model is: a config, an item table, and states for all positions of a window."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from csrec_dist.models import pretrained
from csrec_dist.models.histories import pad_histories


class ModelConfig(BaseModel):
    """The keys all models share; `name` is the model's file name in this folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    width: int = Field(64, ge=1, strict=True, description="d, the width of states and item table")
    dropout: float = Field(ge=0, lt=1, description="dropout, where the model says")


class ItemTable(nn.Module):
    """One vector per item, read for inputs and multiplied with states for logits.

    `weight` [V, d] holds item i in row i−1: padding has no row, so it is neither trained nor
    ranked. `bias` is [V] (zero at the start) or None. The caller initialises `weight`.
    """

    bias: nn.Parameter | None

    def __init__(self, num_items: int, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_items, width))
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_items)) if bias else None)

    def forward(self, items: Tensor) -> Tensor:
        """Vectors [.., d] of items [..] in 0…V; zeros, and no gradient, where an item is 0."""
        vectors = F.embedding((items - 1).clamp(min=0), self.weight)
        return vectors.masked_fill((items == 0).unsqueeze(-1), 0.0)

    def logits(self, states: Tensor) -> Tensor:
        """Logits [.., V] of states [.., d]; column i is item i+1's."""
        return F.linear(states, self.weight, self.bias)


class SequentialModel(nn.Module, ABC):
    """Maps histories to states; a state's logits are its products with the item table.

    A model knows no rank, device, loss or file. Evaluation mode is the caller's business: `encode`
    and `score` drop units out while `training` is set.
    """

    Config: ClassVar[type[ModelConfig]]

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
        items, lengths = pad_histories(histories, self.num_items, self.max_length)
        items, lengths = items.to(self.item_table.weight.device), lengths.to(self.item_table.weight.device)
        rows = torch.arange(len(items), device=items.device)
        logits = self.item_table.logits(self.encode(items)[rows, lengths - 1])
        return F.pad(logits, (1, 0), value=-math.inf)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write model.safetensors and config.json into `folder`."""
        description = pretrained.describe(self, self.config, self.num_items, self.max_length)
        pretrained.write(folder, self.state_dict(), description)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """The model that `save_pretrained` wrote, on the CPU, in training mode.

        Raises:
            UserError: the folder holds no model, another model than `cls`, or a broken one.
        """
        description = pretrained.read_description(folder)
        description.require_architecture(cls.__name__, folder)
        config = description.parse_config(cls.Config, folder)
        with torch.device("meta"):
            model = cls(config, description.num_items, description.max_length)
        model.to_empty(device="cpu")
        pretrained.read_weights(folder, model)
        return model
