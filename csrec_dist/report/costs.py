"""What a run took, as sections of its report: trainings, time and memory of its stages, costs, dataset and labels."""

from collections.abc import Iterator
from typing import Any

from csrec_dist.report.document import Block, Cell, Section, Table, Text, best_of
from csrec_dist.report.findings import Pictures, shown
from csrec_dist.report.tables import HEADER, NONE, figure, number, time_shares
from csrec_dist.runs.run import Run, best_epoch

CSREC_STAGES = {"teach": "teachers", "label": "soft labels", "distill": "student"}
"""Stages whose cost is that of the method, Base's being the stage baseline."""


def training_section(run: Run, pictures: Pictures) -> Section:
    """Curves, and a row for each training."""
    return Section.of("Training", _trainings(run, pictures))


def _trainings(run: Run, pictures: Pictures) -> Iterator[Block]:
    yield from shown(pictures, "validation", "loss")
    if run.trainings:
        header = ["model", "seed", "epochs", "best epoch", "best validation NDCG@10", "seconds", "examples/s"]
        rows = [_training_row(run.title(n), t) for n, t in run.trainings.items()]
        best = best_of([best_epoch(t)["valid"]["ndcg@10"] if t.get("epochs") else None for t in run.trainings.values()])
        marked: list[list[str | Cell]] = [
            [*row[:4], Cell(row[4], is_best), *row[5:]] for row, is_best in zip(rows, best, strict=True)
        ]
        yield Table.of((*header, "waited for data", "trained by"), marked)


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
    header = ("stage", "seconds", "ranks", *HEADER, "peak memory of each rank, MiB")
    done = [
        [row.stage, f"{row.seconds:,.1f}", str(row.num_ranks), *time_shares(run, row.stage), row.memory]
        for row in run.stages
    ]
    yield Table.of(header, [*done, *([name, "not done", *[NONE] * (len(header) - 2)] for name in run.missing)])


def costs_section(run: Run) -> Section:
    """What the method costs beside Base."""
    return Section.of("Costs", _costs(run))


def _costs(run: Run) -> Iterator[Block]:
    costs = {stage: cost for stage in (*CSREC_STAGES, "baseline") if (cost := _cost(run, stage)) is not None}
    parts = [stage for stage in CSREC_STAGES if stage in costs]
    if run.config.method == "base" or not parts:
        return
    base = costs.get("baseline")
    rows = [[CSREC_STAGES[stage], *_cost_cells(costs[stage], base)] for stage in parts]
    rows.append(["in all", *_cost_cells((sum(costs[s][0] for s in parts), sum(costs[s][1] for s in parts)), base)])
    if base:
        rows.append(["Base", *_cost_cells(base, base)])
    yield Table.of(("what was made", "seconds", "CPU seconds of all ranks", "seconds, times Base"), rows)
    yield Text(
        "Of the last process that did each stage, here or in the run it was taken from: a stage that was interrupted "
        "counts from where it resumed, and single members that another run trained count nothing."
    )


def _cost(run: Run, stage: str) -> tuple[float, float] | None:
    """Seconds of the slowest rank, and CPU seconds of all ranks (0 where they are not recorded)."""
    record = run.record(stage)
    if record is None or not record.usage:
        return None
    return max(each["seconds"] for each in record.usage), sum(each.get("cpu_seconds", 0.0) for each in record.usage)


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
        used = [labels[name] for name in ("form", "dtype", "keep")]
        errors = labels["measured"]["errors"]
        error = next(e for e in errors if [e["form"], e["dtype"], e.get("keep")] == used)
        rows.append(["divergence from exact labels, nats", f"{error['divergence']:.2g}"])
    yield Table.of(("soft labels", "value"), rows)
