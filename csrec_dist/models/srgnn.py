"""SR-GNN (Wu et al., 2019): a gated net on the graph of each history's items, and attention from the last one."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csrec_dist.data.batches import Batch
from csrec_dist.models.base import SequentialModel, TrainingStates
from csrec_dist.models.inputs import TrainingInputs
from csrec_dist.models.options import SRGNNConfig
from csrec_dist.models.prefixes import encode_every_prefix, encode_prefixes
from csrec_dist.models.rng import Dropout


class SRGNN(SequentialModel):
    """Item vectors → gated steps on the history's graph → [attention from the last item, last] → linear.

    The graph of a history has its items as nodes and an edge from each item to the next one; an edge counts once,
    however often it occurs. Here a node stands at every position of its item, with the same state at each.
    """

    Config = SRGNNConfig
    config: SRGNNConfig

    def __init__(self, config: SRGNNConfig, num_items: int, max_length: int) -> None:
        super().__init__(config, num_items, max_length)
        self.has_many_shapes = config.num_steps > 1
        width = config.width
        self.step = GatedStep(width)
        self.present = nn.Linear(width, width)
        self.past = nn.Linear(width, width)
        self.attention = nn.Linear(width, 1, bias=False)
        self.dropout = Dropout(config.dropout)
        self.output = nn.Linear(2 * width, width)
        bound = 1 / math.sqrt(width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def encode(self, histories: Tensor) -> Tensor:
        """States [B, L, d]; see `SequentialModel.encode`. With one step all prefixes share their work.

        A prefix differs from the one before by the edge between its last two items. One step passes messages along one
        edge, so only these two nodes change: each prefix adds two new node states, `latest` of the item at its end and
        `settled` of the item before it, which now has a successor. All other nodes have the state of their item's last
        occurrence. Takes memory for B·L²·d numbers. More steps need a graph for each prefix.
        """
        if self.config.num_steps > 1:
            return encode_every_prefix(histories, self.encode_last, self.item_table)
        length = histories.shape[1]
        vectors, same = self.item_table(histories), _same_items(histories)
        ends = torch.arange(length, device=histories.device)
        edges = [neighbours(histories, same, ends + later, vectors.dtype) for later in (0, 1)]
        incoming, outgoing = (torch.cat(both, dim=1) for both in zip(*edges, strict=True))
        latest, settled = self.step(vectors, incoming, outgoing, torch.cat([vectors, vectors], dim=1)).split(length, 1)
        times = same.tril().sum(-1, dtype=vectors.dtype)
        latest_weight = times.unsqueeze(-1) * self._attend_to(self.present(latest) + self.past(latest))
        # [B, L (p), L (k)]: attention of the prefix ending at p over the settled state of position k.
        weights = self._attend_to(self.present(latest).unsqueeze(2) + self.past(settled).unsqueeze(1)).squeeze(-1)
        # Position k counts in the prefix of p if it is before p and none of k+1…p holds its item: [B, L (p), L (k)].
        is_last_occurrence = torch.ones_like(same).tril(-1) & ~(same.tril(-1).cumsum(1) > 0)
        purpose = latest_weight * latest + (weights * times.unsqueeze(1) * is_last_occurrence) @ settled
        return self.output(self.dropout(torch.cat([purpose, latest], dim=-1)))

    def inputs(self, batch: Batch, seed: int, *, padded: bool = False) -> TrainingInputs:
        """See `SequentialModel.inputs`; where each prefix needs a graph, with their order: the shortest first."""
        inputs = super().inputs(batch, seed, padded=padded)
        if self.config.num_steps == 1:
            return inputs
        index, length = inputs.positions.index, batch.targets.shape[1]
        order = (index % length).argsort(stable=True)
        drawn = {"rows": index[order] // length, "ends": index[order] % length, "inverse": order.argsort()}
        return replace(inputs, drawn=drawn)

    def training_states(self, inputs: TrainingInputs) -> TrainingStates:
        """See `SequentialModel.training_states`; with several steps, examples' prefixes are read and no others."""
        if self.config.num_steps == 1:
            return super().training_states(inputs)
        rows, ends, inverse = (inputs.drawn[name] for name in ("rows", "ends", "inverse"))
        cut = ends.device.type == "cpu"
        states = encode_prefixes(inputs.histories, rows, ends, self.encode_last, self.item_table, cut=cut)
        return TrainingStates(states[inverse])

    def encode_last(self, histories: Tensor) -> Tensor:
        """States [B, d]; see `SequentialModel.encode_last`. One graph for each history."""
        nodes, length = self.item_table(histories), histories.shape[1]
        all_ends = histories.new_full((length,), length)
        incoming, outgoing = neighbours(histories, _same_items(histories), all_ends, nodes.dtype)
        for _ in range(self.config.num_steps):
            nodes = self.step(nodes, incoming, outgoing, nodes)
        last = ((histories != 0).sum(1) - 1).clamp(min=0)
        present = nodes[torch.arange(nodes.shape[0], device=nodes.device), last]
        weights = self._attend_to(self.present(present).unsqueeze(1) + self.past(nodes))
        purpose = (weights.masked_fill((histories == 0).unsqueeze(-1), 0.0) * nodes).sum(1)
        return self.output(self.dropout(torch.cat([purpose, present], dim=-1)))

    def _attend_to(self, sums: Tensor) -> Tensor:
        """Attention weights [.., 1] of sums [.., d] of a present and a past part, not normalised (paper, Eq. 6)."""
        return self.attention(torch.sigmoid(sums))


class GatedStep(nn.Module):
    """One step of the gated graph net: messages along the edges in both directions, then gates (paper, Eq. 1–5)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.incoming = nn.Linear(width, width)
        self.outgoing = nn.Linear(width, width)
        self.incoming_bias = nn.Parameter(torch.empty(width))
        self.outgoing_bias = nn.Parameter(torch.empty(width))
        self.message_gates = nn.Linear(2 * width, 3 * width)
        self.node_gates = nn.Linear(width, 3 * width)

    def forward(self, vectors: Tensor, incoming: Tensor, outgoing: Tensor, nodes: Tensor) -> Tensor:
        """New states [B, N, d] of `nodes` [B, N, d], whose edges have weights [B, N, L] for the `vectors` [B, L, d]."""
        messages = [
            incoming @ self.incoming(vectors) + self.incoming_bias,
            outgoing @ self.outgoing(vectors) + self.outgoing_bias,
        ]
        reset, update, new = self.message_gates(torch.cat(messages, dim=-1)).chunk(3, dim=-1)
        node_reset, node_update, node_new = self.node_gates(nodes).chunk(3, dim=-1)
        new = torch.tanh(new + torch.sigmoid(reset + node_reset) * node_new)
        return nodes + torch.sigmoid(update + node_update) * (new - nodes)


def neighbours(histories: Tensor, same: Tensor, ends: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights [B, L, L] of position k as predecessor and as successor of the item at position i.

    The weights of i are equal and sum to 1, or to 0 where it has no neighbour; one position of each neighbour counts.
    Row i sees the graph of the items at 0…ends[i], with `ends` [L] and `same` [B, L, L] from `_same_items`.
    """
    reach = ends.unsqueeze(1) - torch.arange(ends.shape[0], device=ends.device)
    before = F.pad(same, (0, 1))[..., 1:] & (reach >= 1)
    behind = F.pad(same, (1, 0))[..., :-1] & (reach >= 0) & (histories != 0).unsqueeze(1)
    earlier = same.triu(1).to(dtype)
    return _equal_weights(before, earlier), _equal_weights(behind, earlier)


def _equal_weights(neighbour: Tensor, earlier: Tensor) -> Tensor:
    """Equal weights for the first position of each different item in each row of `neighbour` [B, L, L]."""
    again = neighbour.to(earlier.dtype) @ earlier > 0
    mask = (neighbour & ~again).to(earlier.dtype)
    return mask / mask.sum(-1, keepdim=True).clamp(min=1)


def _same_items(histories: Tensor) -> Tensor:
    """Whether two positions hold the same item, [B, L, L]; padding equals nothing."""
    return (histories.unsqueeze(1) == histories.unsqueeze(2)) & (histories != 0).unsqueeze(1)
