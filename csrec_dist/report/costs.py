"""What a run took, as sections of its report: trainings, time and memory of its stages, costs, dataset and labels."""

from collections.abc import Iterator, Sequence
from typing import Any

from csrec_dist.report.document import NONE, Block, Cell, Section, Table, Text, best_of
from csrec_dist.report.findings import Pictures, shown
from csrec_dist.report.names import figure, number
from csrec_dist.runs.run import Run, best_epoch

CSREC_STAGES = {"teach": "teachers", "label": "soft labels", "distill": "student"}
"""Stages whose cost is that of the method, Base's being the stage baseline."""
TIMES = {"waited for data": "data_wait_seconds", "waited for others": "collective_wait_seconds"}
TIME_HEADER = ("busy", *TIMES)
MOST_RANKS = 4


def training_section(run: Run, pictures: Pictures) -> Section:
    """Curves, and a row for each training."""
    return Section.of("Training", _trainings(run, pictures))


def _trainings(run: Run, pictures: Pictures) -> Iterator[Block]:
    yield from shown(pictures, "validation", "loss")
    if run.trainings:
        header = ["model", "seed", "epochs", "best epoch", "best validation NDCG@10", "seconds", "examples/s"]
        header += ["waited for data", "trained by"]
        rows = [_training_row(run.title(name), training) for name, training in run.trainings.items()]
        scores = [best_epoch(t)["valid"]["ndcg@10"] if t.get("epochs") else None for t in run.trainings.values()]
        marked: list[list[str | Cell]] = [
            [*row[:4], Cell(row[4], is_best), *row[5:]] for row, is_best in zip(rows, best_of(scores), strict=True)
        ]
        yield Table.of(header, marked)


def _training_row(title: str, training: dict[str, Any]) -> list[str]:
    epochs = training.get("epochs")
    if not epochs:
        return [title, f"pretrained in {training['taken_from']}", *[NONE] * 7]
    speed = sum(epoch["examples_per_second"] for epoch in epochs) / len(epochs)
    waited = sum(epoch["data_wait_share"] for epoch in epochs) / len(epochs)
    best = best_epoch(training)
    counts = [str(training["seed"]), str(len(epochs)), str(best["epoch"] + 1), figure(best["valid"], "ndcg@10")]
    times = [f"{training['seconds']:,.1f}", f"{speed:,.0f}", f"{waited:.1%}"]
    return [title, *counts, *times, trained_by(training.get("trained_by"))]


def trained_by(record: dict[str, Any] | None) -> str:
    """The engine that ran and its ranks: "deepspeed, ZeRO 2, ranks 0, 1"; a dash if this is not recorded."""
    if record is None:
        return NONE
    stage = f", ZeRO {record['zero_stage']}" if "zero_stage" in record else ""
    ranks = f"rank{'s' * (len(record['ranks']) > 1)} {', '.join(map(str, record['ranks']))}"
    return f"{record['engine']}{stage}, {ranks}"


def stages_section(run: Run, pictures: Pictures) -> Section:
    """Where the time and the memory went."""
    return Section.of("Time and memory", _stages(run, pictures))


def _stages(run: Run, pictures: Pictures) -> Iterator[Block]:
    yield from shown(pictures, "time", "memory")
    header = ("stage", "seconds", "ranks", *TIME_HEADER, "peak memory of each rank, MiB")
    finished = [
        [row.stage, f"{row.seconds:,.1f}", str(row.num_ranks), *time_shares(run, row.stage), row.memory]
        for row in run.stages
    ]
    missing = [[name, "not done", *[NONE] * (len(header) - 2)] for name in run.missing]
    yield Table.of(header, finished + missing)


def time_shares(run: Run, stage: str) -> list[str]:
    """A finished stage's cells under `TIME_HEADER`: shares of each rank's seconds, or their range where ranks are many.

    Waits in the gradients' all-reduce, which overlaps with the backward pass, count as busy, as does reading rows in
    evaluation and labelling.
    """
    record = run.record(stage)
    usages = record.usage if record else []
    if not usages or any(name not in usage for usage in usages for name in TIMES.values()):
        return [NONE] * len(TIME_HEADER)
    waited = [
        [usage[name] / usage["seconds"] if usage["seconds"] else 0.0 for usage in usages] for name in TIMES.values()
    ]
    busy = [1 - sum(shares) for shares in zip(*waited, strict=True)]
    return [shares_text(shares) for shares in (busy, *waited)]


def shares_text(shares: Sequence[float]) -> str:
    """The ranks' shares; of many ranks the smallest and the largest."""
    if len(shares) <= MOST_RANKS:
        return ", ".join(f"{share:.0%}" for share in shares)
    return f"{min(shares):.0%} to {max(shares):.0%}"


def costs_section(run: Run) -> Section:
    """What the method costs beside Base."""
    return Section.of("Costs", _costs(run))


def _costs(run: Run) -> Iterator[Block]:
    costs = {stage: cost for stage in (*CSREC_STAGES, "baseline") if (cost := _cost(run, stage)) is not None}
    stages = [stage for stage in CSREC_STAGES if stage in costs]
    if run.config.method == "base" or not stages:
        return
    base = costs.get("baseline")
    rows = [[CSREC_STAGES[stage], *_cost_cells(costs[stage], base)] for stage in stages]
    seconds, cpu_seconds = (sum(costs[stage][part] for stage in stages) for part in (0, 1))
    rows.append(["in all", *_cost_cells((seconds, cpu_seconds), base)])
    if base:
        rows.append(["Base", *_cost_cells(base, base)])
    yield Table.of(("result", "seconds", "CPU seconds of all ranks", "seconds, times Base"), rows)
    yield Text(
        "Costs are those of the last process that did each stage, here or in the run it was taken from: an interrupted "
        "stage counts from where it resumed, and single members that another run trained count nothing."
    )


def _cost(run: Run, stage: str) -> tuple[float, float] | None:
    """Seconds of the slowest rank, and CPU seconds of all ranks (0 where they are not recorded)."""
    record = run.record(stage)
    if record is None or not record.usage:
        return None
    return max(rank["seconds"] for rank in record.usage), sum(rank.get("cpu_seconds", 0.0) for rank in record.usage)


def _cost_cells(cost: tuple[float, float], base: tuple[float, float] | None) -> list[str]:
    seconds, cpu = cost
    ratio = f"{seconds / base[0]:.1f}" if base and base[0] else NONE
    return [f"{seconds:,.1f}", f"{cpu:,.1f}" if cpu else NONE, ratio]


def dataset_section(run: Run) -> Section:
    """What the models learned from."""
    return Section.of("Dataset", _dataset(run))


def _dataset(run: Run) -> Iterator[Block]:
    if not (run.dataset_folder / "dataset.json").exists():
        yield Text("The dataset has not been prepared yet.")
        return
    statistics = run.dataset.statistics
    source = run.dataset.info.get("source", {})
    rows = [["folder", str(run.dataset_folder)], ["source", str(source.get("name", NONE))]]
    rows += [[f"{name} rows", f"{split.num_rows:,}"] for name, split in run.dataset.splits.items()]
    rows += [["train examples", f"{run.dataset.splits['train'].num_examples:,}"], ["window", str(run.dataset.window)]]
    rows += [[name.replace("_", " "), number(value)] for name, value in statistics.items()]
    yield Table.of(("statistic", "value"), rows)
    if "leaked_test_targets" in statistics:
        yield Text(
            f"Of {run.dataset.splits['test'].num_rows:,} test targets, {statistics['leaked_test_targets']:,} "
            f"({statistics['leaked_test_targets_share']:.1%}) are also training targets of the same user."
        )


def labels_section(run: Run) -> Section:
    """What the student was taught with."""
    return Section.of("Soft labels", _labels(run))


def _labels(run: Run) -> Iterator[Block]:
    if run.labels is None:
        return
    labels = run.labels
    rows = [
        ["form", f"{labels['form']}, {labels['combine']}, {labels['dtype']}"],
        ["members", ", ".join(labels["members"])],
        ["examples × items", f"{labels['num_examples']:,} × {labels['num_items']:,}"],
        ["shards", number(labels["num_shards"])],
        ["bytes", number(labels["bytes"])],
        ["bytes per example", f"{labels['bytes_per_example']:,.0f}"],
        ["dense equivalent, bytes", number(labels["dense_bytes"])],
        ["share of the dense equivalent", f"{labels['ratio']:.2%}"],
    ]
    if labels["measured"] is not None:
        used = tuple(labels[name] for name in ("form", "dtype", "keep"))
        errors = {(error["form"], error["dtype"], error.get("keep")): error for error in labels["measured"]["errors"]}
        rows.append(["divergence from exact labels, nats", f"{errors[used]['divergence']:.2g}"])
    yield Table.of(("soft labels", "value"), rows)
