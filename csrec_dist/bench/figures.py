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
    own = [asdict(training) for training in trainings(run.logs, stage, warmup)]
    ranks = [[Training(**each) for each in part] for part in run.runtime.gather(own)]
    steps = np.array([1e3 * seconds for part in ranks for each in part for seconds in each.seconds])
    seconds = [sum(sum(each.seconds) for each in part) for part in ranks]

    def per_second(value: Callable[[Training], float]) -> list[float]:
        return [sum(map(value, part)) / total if total else 0.0 for part, total in zip(ranks, seconds, strict=True)]

    return StageFigures(
        seconds=_slowest(run, stage),
        examples=[sum(each.examples for each in part) for part in ranks],
        examples_per_second=per_second(lambda each: each.counted_examples),
        steps=StepTimes(
            num=len(steps), **dict(zip(("p50", "p90", "p99", "largest"), _percentiles(steps), strict=True))
        ),
        data_wait=per_second(lambda each: each.data_wait),
        rank_wait=per_second(lambda each: each.rank_wait),
        teraflops=per_second(lambda each: each.counted_examples * flops.training[each.name] / 1e12),
        peak_memory_mib=_memory(run, stage),
        labels_gb_per_second=None,
        one_rank_examples_per_second=None,
    )


def _percentiles(values: np.ndarray) -> list[float]:
    return np.percentile(values, (50, 90, 99, 100)).tolist()


def _of_pass(run: MeasuredRun, stage: str, flops: RunFlops) -> StageFigures:
    """The figures of a stage that reads rows: those whose labels it writes, or those of each pass over a split."""
    seconds, usage = _slowest(run, stage), _usage(run, stage)
    examples, operations = _labelled(run, flops) if stage == "label" else _ranked(run, flops)
    return StageFigures(
        seconds=seconds,
        examples=examples,
        examples_per_second=[number / seconds for number in examples],
        steps=None,
        data_wait=[each["data_wait_seconds"] / each["seconds"] for each in usage],
        rank_wait=[each["collective_wait_seconds"] / each["seconds"] for each in usage],
        teraflops=[number / seconds / 1e12 for number in operations],
        peak_memory_mib=_memory(run, stage),
        labels_gb_per_second=None,
        one_rank_examples_per_second=None,
    )


def _labelled(run: MeasuredRun, flops: RunFlops) -> tuple[list[int], list[float]]:
    """The examples whose labels each rank wrote, and the operations that made them: a column's ranks share these."""
    split = run.dataset.splits["train"]
    examples = [sum(split.shard_examples[shard] for shard in shards) for shards in _shards(run)]
    return examples, [number * flops.labelling for number in examples]


def _ranked(run: MeasuredRun, flops: RunFlops) -> tuple[list[int], list[float]]:
    """The rows that each rank read, one for each pass over them, and the operations that ranked them."""
    examples, operations = [], []
    for shards in _shards(run):
        rows = {name: sum(split.shard_rows[shard] for shard in shards) for name, split in run.dataset.splits.items()}
        examples.append(sum(rows[split] for _, split in passes(run)))
        operations.append(sum(rows[split] * of_row for split, of_row in flops.evaluation))
    return examples, operations


def _shards(run: MeasuredRun) -> list[range]:
    world_size = run.runtime.world_size
    return [owned_shards(run.dataset.num_shards, rank, world_size) for rank in range(world_size)]


def _usage(run: MeasuredRun, stage: str) -> list[dict[str, float]]:
    return run.require(stage).usage


def _slowest(run: MeasuredRun, stage: str) -> float:
    return max(each["seconds"] for each in _usage(run, stage))


def _memory(run: MeasuredRun, stage: str) -> list[float]:
    return [each["peak_memory_mib"] for each in _usage(run, stage)]
