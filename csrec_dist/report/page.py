"""The report of a run as Markdown and as a self-contained HTML page."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from csrec_dist.files import write_text
from csrec_dist.report.findings import evaluation_sections
from csrec_dist.report.tables import HEADER, NONE, figure, images, number, table, time_shares
from csrec_dist.runs.run import Run, best_epoch

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .3rem .7rem; text-align: left; }}
th {{ background: #f5f5f5; }}
img {{ max-width: 100%; }}
pre {{ background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 14px; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_report(folder: Path | str) -> Path:
    """Write report/report.md, report.html and the figures of a run, finished or not; return the path of the HTML page.

    Raises:
        UserError: the folder is not the folder of a run.
    """
    run = Run.open(folder)
    from csrec_dist.report.figures import draw_curves, draw_diagrams  # here, as importing matplotlib takes a while

    target = run.folder / "report"
    curves, diagrams = draw_curves(run, target), draw_diagrams(run, target)
    page = "\n\n".join(_sections(run, curves, diagrams)) + "\n"
    write_text(target / "report.md", page)
    write_text(target / "report.html", _to_html(page, run.config.name, [*curves.values(), *diagrams.values()]))
    return target / "report.html"


def _sections(run: Run, curves: dict[str, Path], diagrams: dict[str, Path]) -> Iterable[str]:
    config = run.config
    yield f"# Run `{config.name}`"
    yield f"Method `{config.method}`, model `{config.model.name}`, seed {config.seed}."
    if run.missing:
        yield f"**This run is not finished.** Missing stages: {', '.join(run.missing)}."
    yield from evaluation_sections(run, diagrams)
    yield from _trainings(run, curves)
    yield from _stages(run)
    yield from _dataset(run)
    yield from _labels(run)
    yield "## Configuration"
    yield f"```yaml\n{config.to_yaml().rstrip()}\n```"


def _trainings(run: Run, curves: dict[str, Path]) -> Iterable[str]:
    if run.trainings:
        yield "## Training"
        header = ["model", "seed", "epochs", "best epoch", "best validation NDCG@10", "seconds", "examples/s"]
        rows = [_training_row(run.title(n), t) for n, t in run.trainings.items()]
        yield table([*header, "waited for data", "trained by"], rows)
    yield from images(curves)


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


def _stages(run: Run) -> Iterable[str]:
    yield "## Stages"
    header = ["stage", "seconds", "ranks", *HEADER, "peak memory of each rank, MiB"]
    done = [
        [row.stage, f"{row.seconds:,.1f}", str(row.num_ranks), *time_shares(run, row.stage), row.memory]
        for row in run.stages
    ]
    yield table(header, [*done, *([name, "not done", *[NONE] * (len(header) - 2)] for name in run.missing)])


def _dataset(run: Run) -> Iterable[str]:
    yield "## Dataset"
    if not (run.dataset_folder / "dataset.json").exists():
        yield "The dataset has not been prepared yet."
        return
    statistics = run.dataset.statistics
    source = run.dataset.info.get("source", {})
    rows = [["folder", str(run.dataset_folder)], ["source", str(source.get("name", NONE))]]
    rows += [[f"{name} rows", f"{split.num_rows:,}"] for name, split in run.dataset.splits.items()]
    rows += [["train examples", f"{run.dataset.splits['train'].num_examples:,}"], ["window", str(run.dataset.window)]]
    rows += [[name.replace("_", " "), number(value)] for name, value in statistics.items()]
    yield table(["statistic", "value"], rows)
    if "leaked_test_targets" in statistics:
        yield (
            f"Of {run.dataset.splits['test'].num_rows:,} test targets, {statistics['leaked_test_targets']:,} "
            f"({statistics['leaked_test_targets_share']:.1%}) are also training targets of the same user."
        )


def _labels(run: Run) -> Iterable[str]:
    if run.labels is None:
        return
    labels = run.labels
    yield "## Soft labels"
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
    yield table(["soft labels", "value"], rows)


def _to_html(page: str, title: str, images: Iterable[Path]) -> str:
    """The Markdown page as HTML, with its images embedded."""
    import markdown

    body = markdown.markdown(page, extensions=["tables", "fenced_code"])
    for path in images:
        data = base64.b64encode(path.read_bytes()).decode()
        body = body.replace(f'src="{path.name}"', f'src="data:image/png;base64,{data}"')
    return PAGE.format(title=html.escape(title), body=body)
