"""SASRec (Kang and McAuley, 2018): a causal transformer over the items of a window."""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from csrec_dist.models.base import ModelConfig, SequentialModel
from csrec_dist.models.dropout import Dropout

LAYER_NORM_EPS = 1e-12
INITIAL_DEVIATION = 0.02


class SASRecConfig(ModelConfig):
    """Sizes of a SASRec; attention weights drop out as everything else does unless said otherwise."""

    name: Literal["sasrec"] = "sasrec"
    dropout: float = Field(0.3, ge=0, lt=1, description="dropout of inputs, attention output and feed-forward")
    attention_dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout of the attention weights; null: as dropout"
    )
    num_layers: int = Field(2, ge=1, strict=True, description="transformer layers")
    num_heads: int = Field(2, ge=1, strict=True, description="attention heads; they divide the width")
    inner_width: int = Field(256, ge=1, strict=True, description="inner width of the feed-forward")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


class SASRec(SequentialModel):
    """(item + position) → LayerNorm → dropout → post-norm causal layers; positions count from the left."""

    Config = SASRecConfig
    config: SASRecConfig

    def __init__(self, config: SASRecConfig, num_items: int, max_length: int) -> None:
        super().__init__(config, num_items, max_length)
        self.positions = nn.Parameter(torch.empty(max_length, config.width))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(CausalLayer(config) for _ in range(config.num_layers))
        self._initialise()

    def _initialise(self) -> None:
        """Every matrix from N(0, 0.02²), biases 0."""
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=INITIAL_DEVIATION)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def encode(self, histories: Tensor) -> Tensor:
        """States [B, L, d]; see `SequentialModel.encode`. ValueError when L > max_length."""
        length = histories.shape[1]
        if length > self.max_length:
            raise ValueError(f"Histories have {length} positions; this model has {self.max_length}.")
        states = self.dropout(self.norm(self.item_table(histories) + self.positions[:length]))
        for layer in self.layers:
            states = layer(states)
        return states


class CausalLayer(nn.Module):
    """Self-attention over the past and a feed-forward net, each followed by dropout, + x, LayerNorm."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.attention_dropout = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.inner = nn.Linear(width, config.inner_width)
        self.inner_output = nn.Linear(config.inner_width, width)
        self.inner_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, d] → [B, L, d]; position l reads positions 0…l."""
        x = self.attention_norm(x + self.dropout(self.attention_output(self._attend(x))))
        return self.inner_norm(x + self.dropout(self.inner_output(F.gelu(self.inner(x)))))

    def _attend(self, x: Tensor) -> Tensor:
        """Causal attention of all heads, [B, L, d].

        No padding mask is needed: windows are padded on the right, so whatever lies at or before a
        real position is real, and the causal mask already hides all that lies behind it.
        """
        num_windows, length, width = x.shape
        split = self.query_key_value(x).view(num_windows, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return mixed.transpose(1, 2).reshape(num_windows, length, width)
