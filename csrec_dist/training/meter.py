"""The loss curve of an epoch: sums over examples and ranks, which a checkpoint within the epoch carries on."""

import time

import torch
from torch import Tensor

from csrec_dist.distributed import Group
from csrec_dist.losses import Loss
from csrec_dist.training.checkpoints import EpochSums

LOSS_PARTS = ("loss", "cross_entropy", "divergence")


class Meter:
    """Sums losses on the device and reduces them over the group every few steps.

    It begins with a checkpoint's sums of the epoch; seconds and waits before the checkpoint are those of the rank that
    wrote it.
    """

    def __init__(self, group: Group, so_far: EpochSums, log_steps: int, device: torch.device) -> None:
        self._group, self._log_steps = group, log_steps
        *window, self._examples = so_far.window if group.is_leader else [0.0] * 5
        self._sums = torch.tensor(window, dtype=torch.float64, device=device)
        self._steps = so_far.window_steps
        self._total = torch.tensor(so_far.total, dtype=torch.float64)
        self._waits = group.watch.waits
        self._begin = time.perf_counter() - so_far.seconds
        self._data_begin = self._waits.data - so_far.data_wait
        self._ranks_begin = self._waits.ranks - so_far.collective_wait
        self.note = ""

    @property
    def is_full(self) -> bool:
        """Whether a point of the curve is due."""
        return self._steps >= self._log_steps

    @property
    def is_finite(self) -> bool:
        """Whether no step up to the last point had a loss that is NaN or infinite, on any rank."""
        return bool(self._total.isfinite().all())

    @property
    def seconds(self) -> float:
        """Seconds of training in this epoch."""
        return time.perf_counter() - self._begin

    @property
    def data_wait(self) -> float:
        """Seconds of these that this rank has waited for data."""
        return self._waits.data - self._data_begin

    @property
    def collective_wait(self) -> float:
        """Seconds of these that this rank has waited in collectives."""
        return self._waits.ranks - self._ranks_begin

    def add(self, loss: Loss, num_examples: int) -> None:
        """Add this rank's share of a step."""
        self._sums += torch.stack([loss.count, loss.sum.detach(), loss.cross_entropy, loss.divergence]).double()
        self._examples += num_examples
        self._steps += 1

    def point(self) -> dict[str, float]:
        """Averages over the steps since the last point, on all ranks; empty when there was no example."""
        sums = self._window().cpu()
        self._total += sums
        self._sums, self._examples, self._steps = torch.zeros_like(self._sums), 0.0, 0
        if sums[0] == 0:
            return {}
        averages = (sums[1:4] / sums[0]).tolist()
        rate = self._total[4].item() / self.seconds
        self.note = f"loss {averages[0]:.3f}  {rate:,.0f} examples/s  waited {self.data_wait / self.seconds:.0%}"
        return {f"train/{name}": value for name, value in zip(LOSS_PARTS, averages, strict=True)}

    def so_far(self) -> EpochSums:
        """The epoch's sums so far; every rank of the group calls this."""
        window = self._window().tolist()
        waits = self.data_wait, self.collective_wait
        return EpochSums(self._total.tolist(), window, self._steps, self.seconds, *waits)

    def _window(self) -> Tensor:
        """The sums [5] since the last point, over the ranks; as in `EpochSums`."""
        examples = self._sums.new_full((1,), self._examples)
        return self._group.all_reduce_sum(torch.cat([self._sums, examples]))

    def times(self) -> dict[str, float]:
        """Seconds of the epoch's training: busy, waiting for data and in collectives, over the ranks of the group.

        The gradients' all-reduce overlaps with the backward pass and counts as busy. Where ranks differ in speed, the
        fast ones wait for the sum of the step's count before the backward pass: on a CPU that is the wait for the
        slowest rank. On GPUs the host does not wait there, and only the waits between epochs are measured.
        """
        seconds = [self.seconds - self.data_wait - self.collective_wait, self.data_wait, self.collective_wait]
        ranks = self._group.all_gather(torch.tensor(seconds, dtype=torch.float64, device=self._sums.device)).cpu()
        times: dict[str, float] = {}
        for name, values in zip(("busy", "data_wait", "collective_wait"), ranks.T, strict=True):
            spread = {"min": values.min(), "mean": values.mean(), "max": values.max()}
            times |= {f"time/{name}/{kind}": value.item() for kind, value in spread.items()}
        return times
