"""NextItNet (Yuan et al., 2019): dilated causal convolutions over the items of a window."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from csrec_dist.models.base import SequentialModel
from csrec_dist.models.options import NextItNetConfig
from csrec_dist.models.rng import Dropout

LAYER_NORM_EPS = 1e-8


class NextItNet(SequentialModel):
    """Item vectors → dropout → residual blocks → linear; the state is read at the last real position."""

    Config = NextItNetConfig
    config: NextItNetConfig

    def __init__(self, config: NextItNetConfig, num_items: int, max_length: int) -> None:
        super().__init__(config, num_items, max_length)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.Sequential(
            *(ResidualBlock(config.width, config.kernel, dilation) for dilation in config.dilations * config.num_blocks)
        )
        self.output = nn.Linear(config.width, config.width)
        bound = 1 / math.sqrt(num_items)
        nn.init.uniform_(self.item_table.weight, -bound, bound)
        nn.init.xavier_normal_(self.output.weight)
        nn.init.constant_(self.output.bias, 0.1)

    def encode(self, histories: Tensor) -> Tensor:
        """States [B, L, d]; see `SequentialModel.encode`."""
        return self.output(self.blocks(self.dropout(self.item_table(histories))))


class ResidualBlock(nn.Module):
    """Two causal convolutions, of dilation d and 2d, each with LayerNorm and ReLU, + x (paper, Figure 3b)."""

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.near = CausalConvolution(width, kernel, dilation)
        self.near_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.far = CausalConvolution(width, kernel, 2 * dilation)
        self.far_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, d] → [B, L, d]; position l reads positions 0…l."""
        near = F.relu(self.near_norm(self.near(x)))
        return x + F.relu(self.far_norm(self.far(near)))


class CausalConvolution(nn.Conv1d):
    """A convolution over positions of [B, L, d] that sees zeros before the first one."""

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__(width, width, kernel, dilation=dilation)
        self.reach = (kernel - 1) * dilation

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, d] → [B, L, d]; position l reads l, l − dilation, l − 2·dilation, …"""
        return super().forward(F.pad(x.transpose(1, 2), (self.reach, 0))).transpose(1, 2)
