"""SASRec (Kang and McAuley, 2018): a causal transformer over the items of a window."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from csrec_dist.models.base import SequentialModel
from csrec_dist.models.options import SASRecConfig, TransformerConfig
from csrec_dist.models.rng import Dropout
from csrec_dist.process_state import small_products

LAYER_NORM_EPS = 1e-12
INITIAL_DEVIATION = 0.02


class SASRec(SequentialModel):
    """(item + position) → LayerNorm → dropout → post-norm causal layers; positions count from the left."""

    Config = SASRecConfig
    config: SASRecConfig

    def __init__(self, config: SASRecConfig, num_items: int, max_length: int) -> None:
        super().__init__(config, num_items, max_length)
        self.positions = nn.Parameter(torch.empty(max_length, config.width))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        initialise(self)

    def encode(self, histories: Tensor) -> Tensor:
        """States [B, L, d]; see `SequentialModel.encode`. ValueError when L > max_length."""
        length = histories.shape[1]
        if length > self.max_length:
            raise ValueError(f"Histories have {length} positions; this model has {self.max_length}.")
        return self.encode_vectors(self.item_table(histories))

    def encode_vectors(self, vectors: Tensor) -> Tensor:
        """States [B, L, d] of windows given by their items' vectors [B, L, d]."""
        states = self.dropout(self.norm(vectors + self.positions[: vectors.shape[1]]))
        for layer in self.layers:
            states = layer(states)
        return states


def initialise(model: nn.Module) -> None:
    """Every matrix from N(0, 0.02²), biases 0."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=INITIAL_DEVIATION)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward net, each followed by dropout, + x, LayerNorm."""

    def __init__(self, config: TransformerConfig) -> None:
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

    def forward(self, x: Tensor, seen: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """[B, L, d] → [B, L, d]; position l reads positions 0…l, or all that are `seen` [B, L] if that is given.

        `queries` [B, Q] are the positions whose outputs [B, Q, d] are computed, if not all are.
        """
        attended = self.attention_output(self._attend(x, seen, queries))
        x = self.attention_norm((x if queries is None else _take(x, queries)) + self.dropout(attended))
        return self.inner_norm(x + self.dropout(self.inner_output(F.gelu(self.inner(x)))))

    def _attend(self, x: Tensor, seen: Tensor | None, queries: Tensor | None) -> Tensor:
        """Attention of all heads, [B, Q, d].

        The causal one needs no padding mask: windows are padded on the right, so whatever lies at or
        before a real position is real, and the causal mask already hides all that lies behind it.
        """
        assert seen is not None or queries is None, "causal attention answers for all positions"
        query, key, value = self.query_key_value(x).chunk(3, dim=-1)
        query = query if queries is None else _take(query, queries)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
        mask = None if seen is None else seen[:, None, None, :]
        dropout = self.attention_dropout if self.training else 0.0
        with _attention_kernel(query):
            mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=mask is None)
        return mixed.transpose(1, 2).flatten(2)


def _attention_kernel(query: Tensor) -> AbstractContextManager[None]:
    """What torch computes attention with in the block: its own choice, but on a CPU where oneDNN multiplies.

    Without dropout torch computes it there in blocks, whose products are so small that beginning them by oneDNN takes
    nine times as long as all else. In training they would go that way in the backward pass, too, so whole products are
    made.
    """
    if query.device.type != "cpu" or torch.backends.mkldnn.matmul.fp32_precision != "bf16":  # type: ignore[attr-defined]
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH) if query.requires_grad else small_products()


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """x [B, Q, d] at `positions` [B, Q] of x [B, L, d].

    By rows, not by `gather`: for the gradient of that the host of a GPU waits where sums are taken in a fixed order.
    """
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1) * x.shape[1] + positions
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(*positions.shape, x.shape[-1])
