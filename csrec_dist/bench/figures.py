"""The figures of a stage that was measured: rates, times of steps, waits, operations and memory of all ranks."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from csrec_dist.bench.flops import RunFlops, passes
from csrec_dist.bench.result import StageFigures, StepTimes
from csrec_dist.bench.steps import MeasuredRun, Training, trainings
from csrec_dist.data.order import owned_shards
from csrec_dist.options import TRAININGS


def stage_figures(run: MeasuredRun, stage: str, warmup: int, flops: RunFlops) -> StageFigures:
    """The figures of a stage of a run that is done; every rank calls this.

    Args:
        flops: operations for each example.
        warmup: steps at the beginning of each training that do not count.
    """
    return _of_training(run, stage, warmup, flops) if stage in TRAININGS else _of_pass(run, stage, flops)


def _of_training(run: MeasuredRun, stage: str, warmup: int, flops: RunFlops) -> StageFigures:
    """The figures of a stage that trains, from the steps of all ranks."""
    gathered = run.runtime.gather([asdict(training) for training in trainings(run.logs, stage, warmup)])
    ranks = [[Training(**values) for values in of_rank] for of_rank in gathered]
    seconds = [sum(sum(training.seconds) for training in of_rank) for of_rank in ranks]
    milliseconds = np.array([1e3 * step for of_rank in ranks for training in of_rank for step in training.seconds])
    p50, p90, p99, largest = np.percentile(milliseconds, (50, 90, 99, 100)).tolist()

    def per_second(value: Callable[[Training], float]) -> list[float]:
        return [
            sum(map(value, of_rank)) / total if total else 0.0 for of_rank, total in zip(ranks, seconds, strict=True)
        ]

    return StageFigures(
        seconds=_slowest(run, stage),
        examples=[sum(training.examples for training in of_rank) for of_rank in ranks],
        examples_per_second=per_second(lambda training: training.counted_examples),
        steps=StepTimes(num=len(milliseconds), p50=p50, p90=p90, p99=p99, largest=largest),
        data_wait=per_second(lambda training: training.data_wait),
        rank_wait=per_second(lambda training: training.rank_wait),
        teraflops=per_second(lambda training: training.counted_examples * flops.training[training.name] / 1e12),
        peak_memory_mib=_memory(run, stage),
        labels_gb_per_second=None,
        one_rank_examples_per_second=None,
    )


def _of_pass(run: MeasuredRun, stage: str, flops: RunFlops) -> StageFigures:
    """The figures of a stage that reads rows: those whose labels it writes, or those of each pass over a split."""
    seconds, usage = _slowest(run, stage), _usage(run, stage)
    examples, operations = _labelled(run, flops) if stage == "label" else _ranked(run, flops)
    return StageFigures(
        seconds=seconds,
        examples=examples,
        examples_per_second=[number / seconds for number in examples],
        steps=None,
        data_wait=[rank["data_wait_seconds"] / rank["seconds"] for rank in usage],
        rank_wait=[rank["collective_wait_seconds"] / rank["seconds"] for rank in usage],
        teraflops=[number / seconds / 1e12 for number in operations],
        peak_memory_mib=_memory(run, stage),
        labels_gb_per_second=None,
        one_rank_examples_per_second=None,
    )


def _labelled(run: MeasuredRun, flops: RunFlops) -> tuple[list[int], list[float]]:
    """The examples whose labels each rank wrote, and the operations for them, which the ranks of a column share."""
    split = run.dataset.splits["train"]
    examples = [sum(split.shard_examples[shard] for shard in shards) for shards in _shards(run)]
    return examples, [number * flops.labelling for number in examples]


def _ranked(run: MeasuredRun, flops: RunFlops) -> tuple[list[int], list[float]]:
    """The rows that each rank read, one for each pass over them, and the operations that ranked them."""
    examples, operations = [], []
    for shards in _shards(run):
        rows = {name: sum(split.shard_rows[shard] for shard in shards) for name, split in run.dataset.splits.items()}
        examples.append(sum(rows[split] for _, split in passes(run)))
        operations.append(sum(rows[split] * row_flops for split, row_flops in flops.evaluation))
    return examples, operations


def _shards(run: MeasuredRun) -> list[range]:
    world_size = run.runtime.world_size
    return [owned_shards(run.dataset.num_shards, rank, world_size) for rank in range(world_size)]


def _usage(run: MeasuredRun, stage: str) -> list[dict[str, float]]:
    return run.require(stage).usage


def _slowest(run: MeasuredRun, stage: str) -> float:
    return max(rank["seconds"] for rank in _usage(run, stage))


def _memory(run: MeasuredRun, stage: str) -> list[float]:
    return [rank["peak_memory_mib"] for rank in _usage(run, stage)]
