"""GRU4Rec (Hidasi et al., 2016; Tan et al., 2016): a recurrent net over the items of a window."""

from torch import Tensor, nn

from csrec_dist.models.base import SequentialModel
from csrec_dist.models.options import GRU4RecConfig
from csrec_dist.models.recurrent import GRU
from csrec_dist.models.rng import Dropout


class GRU4Rec(SequentialModel):
    """Item vectors → dropout → GRU layers without bias → linear to the items' width."""

    Config = GRU4RecConfig
    config: GRU4RecConfig

    def __init__(self, config: GRU4RecConfig, num_items: int, max_length: int) -> None:
        super().__init__(config, num_items, max_length)
        self.dropout = Dropout(config.dropout)
        self.gru = GRU(config.width, config.hidden, config.num_layers)
        self.output = nn.Linear(config.hidden, config.width)
        nn.init.xavier_normal_(self.item_table.weight)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            nn.init.xavier_uniform_(self.gru.get_parameter(name))

    def encode(self, histories: Tensor) -> Tensor:
        """States [B, L, d]; see `SequentialModel.encode`. The recurrence makes them causal."""
        hidden = self.gru(self.dropout(self.item_table(histories)))
        return self.output(hidden)
