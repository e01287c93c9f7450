"""BERT4Rec (Sun et al., 2019): a transformer that reads both directions and fills in masked items."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csrec_dist.data.batches import Batch
from csrec_dist.distributed.catalog import embedding
from csrec_dist.models.base import SequentialModel, TrainingStates
from csrec_dist.models.inputs import Picked, TrainingInputs, padded_size, pick, repeats
from csrec_dist.models.options import BERT4RecConfig
from csrec_dist.models.prefixes import encode_every_prefix, encode_prefixes
from csrec_dist.models.rng import Dropout, uniform
from csrec_dist.models.sasrec import LAYER_NORM_EPS, TransformerLayer, initialise
from csrec_dist.models.table import ItemTable

PREFIX_STREAM, MASK_STREAM = 1, 2
"""Streams of random numbers: which prefixes are trained, and which items are masked."""


class BERT4Rec(SequentialModel):
    """(item or mask + position) → LayerNorm → dropout → post-norm layers → linear → GELU → LayerNorm.

    The state of a history is that of a mask appended to it, so there is a position more than the longest history has.
    Only evaluation has histories so long that the mask is at the last position. If positions count from the start, no
    mask was trained there; if they count from the end, all masks are at position 0.
    """

    Config = BERT4RecConfig
    config: BERT4RecConfig
    has_many_shapes = True

    def __init__(self, config: BERT4RecConfig, num_items: int, max_length: int) -> None:
        super().__init__(config, num_items, max_length)
        width = config.width
        self.item_table = ItemTable(num_items, width, bias=True)
        self.mask = nn.Parameter(torch.empty(1, width))
        self.positions = nn.Parameter(torch.empty(max_length + 1, width))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.output = nn.Linear(width, width)
        self.output_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        initialise(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)

    def encode(self, histories: Tensor) -> Tensor:
        """States [B, L, d]; see `SequentialModel.encode`. Each prefix is read for itself; 0 at padding."""
        return encode_every_prefix(histories, self.encode_last, self.item_table)

    def encode_last(self, histories: Tensor) -> Tensor:
        """States [B, d]; see `SequentialModel.encode_last`. ValueError when L > max_length."""
        length = histories.shape[1]
        if length > self.max_length:
            raise ValueError(f"Histories have {length} positions; this model has {self.max_length}.")
        ends = (histories != 0).sum(1, keepdim=True)
        masked = torch.arange(length + 1, device=histories.device) == ends
        return self._read(F.pad(histories, (0, 1)), masked, ends).squeeze(1)

    def inputs(self, batch: Batch, seed: int, *, padded: bool = False) -> TrainingInputs:
        """The Cloze task in two forms, both in every step.

        Of each window, `prefixes` of its prefixes (or all, if it has fewer) are read with a mask after them, as in
        evaluation: these are examples, and have soft labels. The window with its last target is read once more with
        `mask_ratio` of its items, and at least one, masked at random. A mask with items after it is no example, so
        these states come last and have no labels. Both are drawn by example id from the step's seed. An epoch thus
        costs few passes through the layers, and reads some prefixes of each window.
        """
        # The prefixes, repeated up to the padded size with weight 0.
        rows, ends = self._draw_prefixes(batch, seed)
        num_prefixes = len(rows)
        most = len(batch.items) * min(self.config.prefixes, batch.targets.shape[1])
        again = torch.from_numpy(repeats(num_prefixes, most if padded else None))
        rows, ends = torch.cat([rows, rows[again]]), torch.cat([ends, ends[again]])
        masked = self._draw_masks(batch, seed)
        amid = Picked.of(masked.numpy(), padded_size(int(masked.sum()), masked.numel()) if padded else None)
        examples = batch.examples[rows, ends]
        first = torch.full((len(batch.items), 1), -1)  # no example predicts the first item of a window
        predicted = torch.cat([first, batch.examples], dim=1).flatten()[amid.index]
        weights = torch.ones(len(rows))
        weights[num_prefixes:] = 0
        return TrainingInputs(
            items=batch.items,
            positions=amid,
            targets=torch.cat([batch.targets[rows, ends], batch.items.flatten()[amid.index]]),
            weights=torch.cat([weights, amid.weights]),
            seed=torch.tensor(seed),
            examples=examples,
            predicted=torch.cat([examples, predicted]),
            num_states=num_prefixes + amid.num,
            drawn={"rows": rows, "ends": ends, "masked": masked},
        )

    def training_states(self, inputs: TrainingInputs) -> TrainingStates:
        """The states of the prefixes that `inputs` has drawn, then those of the masks amid items."""
        rows, ends, masked = (inputs.drawn[name] for name in ("rows", "ends", "masked"))
        cut = ends.device.type == "cpu"  # a GPU's host would wait to learn the lengths
        last = encode_prefixes(inputs.histories, rows, ends, self.encode_last, self.item_table, cut=cut)
        amid = pick(self._read(inputs.items, masked), inputs.positions.index, inputs.positions.inverse)
        return TrainingStates(torch.cat([last, amid]), more_than_examples=True)

    def _draw_prefixes(self, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        """Rows and ends [n] of different prefixes of each window, the shortest first."""
        has_target = batch.targets > 0
        scores = uniform(batch.examples, seed, PREFIX_STREAM, 1).squeeze(-1).masked_fill(~has_target, 2.0)
        num = min(self.config.prefixes, has_target.shape[1])
        is_drawn = torch.zeros_like(has_target).scatter(1, scores.topk(num, largest=False).indices, True)
        ends, rows = (is_drawn & has_target).T.nonzero(as_tuple=True)
        return rows, ends

    def _draw_masks(self, batch: Batch, seed: int) -> Tensor:
        """A mask [B, L + 1] of the windows' items that are masked."""
        items, scores = batch.items, uniform(batch.examples, seed, MASK_STREAM, 2)
        # Item l + 1 is drawn by example l; the first item, which no example has, by the second number of example 0.
        scores = torch.cat([scores[:, :1, 1], scores[..., 0]], dim=1).masked_fill(items == 0, 2.0)
        is_least = scores == scores.amin(1, keepdim=True)
        return ((scores < self.config.mask_ratio) | is_least) & (items != 0)

    def _read(self, items: Tensor, masked: Tensor, queries: Tensor | None = None) -> Tensor:
        """States [B, Q, d] at the positions `queries` [B, Q], or at all, of items [B, L], some of them masked."""
        seen = (items != 0) | masked
        vectors = torch.where(masked.unsqueeze(-1), self.mask, self.item_table(items))
        states = self.dropout(self.norm(vectors + self._positions(seen)))
        *first, last = self.layers
        for layer in first:
            states = layer(states, seen)
        return self.output_norm(F.gelu(self.output(last(states, seen, queries))))

    def _positions(self, seen: Tensor) -> Tensor:
        """Position vectors [L, d] or [B, L, d] of windows whose items and masks are `seen` [B, L]."""
        index = torch.arange(seen.shape[1], device=seen.device)
        if self.config.positions_from == "start":
            return self.positions[index]
        return embedding((seen.sum(1, keepdim=True) - 1 - index).clamp(min=0), self.positions)
