"""NARM (Li et al., 2017): a recurrent net with attention over its own past states."""

import torch
from torch import Tensor, nn

from csrec_dist.models.base import SequentialModel
from csrec_dist.models.options import NARMConfig
from csrec_dist.models.recurrent import GRU
from csrec_dist.models.rng import Dropout


class NARM(SequentialModel):
    """Item vectors → dropout → GRU → [attention over the past, last] → dropout → linear without bias."""

    Config = NARMConfig
    config: NARMConfig

    def __init__(self, config: NARMConfig, num_items: int, max_length: int) -> None:
        super().__init__(config, num_items, max_length)
        hidden = config.hidden
        self.dropout = Dropout(config.dropout)
        self.gru = GRU(config.width, hidden, config.num_layers)
        self.past = nn.Linear(hidden, hidden, bias=False)
        self.present = nn.Linear(hidden, hidden, bias=False)
        self.attention = nn.Linear(hidden, 1, bias=False)
        self.state_dropout = Dropout(config.state_dropout)
        self.output = nn.Linear(2 * hidden, config.width, bias=False)
        for matrix in (self.item_table, self.past, self.present, self.attention, self.output):
            nn.init.xavier_normal_(matrix.get_parameter("weight"))

    def encode(self, histories: Tensor) -> Tensor:
        """States [B, L, d]; see `SequentialModel.encode`. Takes memory for B·L²·hidden numbers."""
        hidden = self.gru(self.dropout(self.item_table(histories)))
        # Weights [B, L, L] of position j for l, not normalised: v·σ(A₁h_j + A₂h_l), 0 for j > l (paper, Eq. 8).
        # Right-padding needs no mask: it lies behind every real position.
        pairs = torch.sigmoid(self.past(hidden).unsqueeze(1) + self.present(hidden).unsqueeze(2))
        weights = self.attention(pairs).squeeze(-1).tril()
        purpose = weights @ hidden
        return self.output(self.state_dropout(torch.cat([purpose, hidden], dim=-1)))

    def encode_last(self, histories: Tensor) -> Tensor:
        """See `SequentialModel.encode_last`: attention from the last position alone, which costs 1/L of `encode`."""
        hidden = self.gru(self.dropout(self.item_table(histories)))
        rows, lengths = torch.arange(histories.shape[0], device=histories.device), (histories != 0).sum(1)
        last = hidden[rows, (lengths - 1).clamp(min=0)]
        pairs = torch.sigmoid(self.past(hidden) + self.present(last).unsqueeze(1))
        weights = self.attention(pairs).squeeze(-1).masked_fill(histories == 0, 0)
        purpose = (weights.unsqueeze(1) @ hidden).squeeze(1)
        return self.output(self.state_dropout(torch.cat([purpose, last], dim=-1)))
