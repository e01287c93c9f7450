"""Pages that compare: two models on the same test rows, or several runs, in the frame of a run's report."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

from csrec_dist.errors import UserError
from csrec_dist.evaluation.options import metric_title
from csrec_dist.evaluation.significance import Line
from csrec_dist.report.answer import ANSWERED, METRICS, ROWS_NOTE
from csrec_dist.report.differences import change_text, difference_text, differences_table, metrics_table
from csrec_dist.report.document import (
    NBSP,
    NONE,
    Answer,
    Block,
    Cell,
    Code,
    Fold,
    Page,
    Picture,
    Section,
    Table,
    Text,
    best_of,
)
from csrec_dist.report.page import write_html
from csrec_dist.report.paired import Comparison, compare_evaluated
from csrec_dist.report.several import Group, group_runs, spread
from csrec_dist.runs.run import Evaluated


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the page of two models that were compared, and return its path."""
    from csrec_dist.report.charts import draw_picture
    from csrec_dist.report.contrasts import draw_differences

    first, second = (", ".join(names) for names in (comparison.first, comparison.second))
    lines = comparison.lines
    answered = comparison.line(ANSWERED) or lines[0]
    picture = draw_picture(
        "Difference B − A, with 95 % intervals",
        "differences",
        partial(draw_differences, [(metric_title(line.metric), line.paired) for line in lines]),
        height=0.9 + 0.3 * len(lines),
    )
    groups = group_runs([model.run.folder for side in comparison.sides for model in side])
    page = Page.of(
        "Comparison of two models",
        {"A": first, "B": second, "test rows": f"{lines[0].paired.count:,}"},
        [
            Section("Answer", (_contrast(first, second, answered), picture, metrics_table(lines), Text(ROWS_NOTE))),
            *_of_runs(groups),
        ],
    )
    return write_html(page, path)


def _contrast(first: str, second: str, line: Line) -> Answer:
    """What a paired comparison says, in a sentence."""
    test, title = line.paired, metric_title(line.metric)
    num_seeds = len(line.differences)
    seeds = f"; {line.num_higher} of {num_seeds} seeds are higher" if num_seeds > 1 else ""
    details = [
        f"{title}: {first} has {test.first:.4f}, {second} has {test.second:.4f}: {difference_text(test)} over "
        f"{test.count:,} test rows{seeds}."
    ]
    if num_seeds == 1:
        details.append(
            "One pair of trained models: another seed moves both. Compare several seeds before relying on it."
        )
    if not test.is_significant:
        headline = f"No difference is shown: {change_text(test)} in {title} from {first} to {second} is within chance."
        return Answer("open", headline, tuple(details))
    if test.difference > 0:
        return Answer("gain", f"{second} is better than {first}: {change_text(test)} in {title}.", tuple(details))
    return Answer("loss", f"{second} is worse than {first}: {change_text(test)} in {title}.", tuple(details))


def write_runs_page(folders: Sequence[Path | str], path: Path) -> Path:
    """Write the page of several runs, and return its path.

    Raises:
        UserError: one of the folders is not the folder of a run.
    """
    groups = group_runs(folders)
    contrasts, problems = _contrasts(groups)
    answer = _contrast(*contrasts[0]) if contrasts else Answer("open", "Nothing could be compared.", problems)
    num_runs = sum(len(group.runs) for group in groups)
    blocks: list[Block] = [answer, *_bars(groups)]
    if contrasts:
        rows = [((first, second), line) for first, second, line in contrasts]
        table = differences_table(("A", "B"), rows, values=("A has", "B has", "B − A"), with_seeds=True)
        blocks += [table, Text(ROWS_NOTE), *map(Text, problems)]
    facts = {"runs": f"{num_runs:,}", "settings": f"{len(groups):,}"}
    page = Page.of(f"Comparison of {num_runs} runs", facts, [Section.of("Answer", blocks), *_of_runs(groups)])
    return write_html(page, path)


Contrast = tuple[str, str, Line]


def _contrasts(groups: Sequence[Group]) -> tuple[list[Contrast], tuple[str, ...]]:
    """The students of the first group against those of the others, then each group's students against its Base.

    The answer is the first; groups that cannot be compared have a sentence that says why.
    """
    pairs = [(groups[0].name, group.name, _side(groups[0], "student"), _side(group, "student")) for group in groups[1:]]
    pairs += [
        (f"Base of {group.name}", group.name, _side(group, "base"), _side(group, "student"))
        for group in groups
        if len(group.values("base", ANSWERED)) == len(group.runs)
    ]
    contrasts, problems = [], []
    for first, second, *sides in pairs:
        try:
            comparison = compare_evaluated(*sides)
        except UserError as error:
            problems.append(f"{first} and {second} were not tested: {error}")
            continue
        contrasts += [(first, second, line) for metric in METRICS if (line := comparison.line(metric))]
    return contrasts, tuple(problems)


def _side(group: Group, model: str) -> list[Evaluated]:
    return [Evaluated(run, model) for run in group.runs]


def _bars(groups: Sequence[Group]) -> Iterator[Picture]:
    """Students and Bases of all groups, for each metric of the answer."""
    from csrec_dist.report.charts import draw_picture
    from csrec_dist.report.contrasts import draw_group_bars
    from csrec_dist.report.figures import bars_height

    for metric in METRICS:
        bars = [
            (f"{group.name}{': Base' * (model == 'base')}", model, values)
            for group in groups
            for model in ("base", "student")
            if (values := group.values(model, metric))
        ]
        if bars:
            several = any(len(values) > 1 for *_, values in bars)
            title = f"{metric_title(metric)} on test{', mean and range over seeds' * several}"
            name = metric.partition("@")[0]
            yield draw_picture(title, name, partial(draw_group_bars, bars), height=bars_height(len(bars)))


def _of_runs(groups: Sequence[Group]) -> Iterator[Section]:
    """Metrics, settings, curves, costs and configs of the runs."""
    yield Section.of("Metrics", _metrics(groups))
    yield Section.of("Training", _curves(groups))
    yield Section.of("Settings that differ", _settings(groups))
    yield Section.of("Time and memory", _stages(groups))
    runs = [run for group in groups for run in group.runs]
    yield Section.of("Configuration", [Fold(run.config.name, (Code(run.config.to_yaml(), "yaml"),)) for run in runs])


def _metrics(groups: Sequence[Group]) -> Iterator[Block]:
    names = {name for group in groups for rows in group.models.values() for row in rows for name in row}
    cut_offs = sorted({int(name.partition("@")[2]) for name in names if "@" in name}, key=lambda n: (n != 10, n))
    tables = [_metrics_table(groups, [f"{kind}@{n}" for kind in ("recall", "ndcg", "mrr")]) for n in cut_offs]
    if tables:
        yield tables[0]
    if tables[1:]:
        yield Fold("Other cut-offs", tuple(tables[1:]))


def _metrics_table(groups: Sequence[Group], metrics: Sequence[str]) -> Table:
    lines = [(group.name, title, rows) for group in groups for title, rows in group.models.items() if any(rows)]
    columns = []
    for metric in metrics:
        values = [[row[metric] for row in rows if metric in row] for *_, rows in lines]
        marks = best_of([mean(of_group) if of_group else None for of_group in values])
        columns.append([Cell(spread(of_group), is_best) for of_group, is_best in zip(values, marks, strict=True)])
    seeds = [str(sum(map(bool, rows))) for *_, rows in lines]
    names = [(name, title) for name, title, _ in lines]
    rows = [(*name, *cells) for name, *cells in zip(names, seeds, *columns, strict=True)]
    return Table.of(("runs", "model", "seeds", *map(metric_title, metrics)), rows, num_names=2)


def _curves(groups: Sequence[Group]) -> Iterator[Block]:
    from csrec_dist.report.charts import draw_picture
    from csrec_dist.report.contrasts import draw_validation

    curves = [
        (group.name, [point["valid"][ANSWERED] for point in training["epochs"]])
        for group in groups
        for run in group.runs
        if (training := run.trainings.get("student")) and training.get("epochs")
    ]
    if curves:
        yield draw_picture("Validation NDCG@10 of the students", "validation", partial(draw_validation, curves))


def _settings(groups: Sequence[Group]) -> Iterator[Block]:
    keys = dict.fromkeys(key for group in groups for key in group.differing)
    if keys:
        rows = [(key, *(group.differing.get(key, NONE) for group in groups)) for key in keys]
        yield Table.of(("key", *(group.name for group in groups)), rows)


def _stages(groups: Sequence[Group]) -> Iterator[Block]:
    """Seconds of each stage, the mean over the runs of a group, and its highest peak of memory."""
    stages = dict.fromkeys(row.stage for group in groups for run in group.runs for row in run.stages)
    rows = []
    for stage in stages:
        cells: list[str] = []
        for group in groups:
            stage_rows = [row for run in group.runs for row in run.stages if row.stage == stage]
            if not stage_rows:
                cells.append(NONE)
                continue
            seconds = mean(row.seconds for row in stage_rows)
            peak = max(max(row.peak_memory_mib, default=0.0) for row in stage_rows)
            cells.append(f"{seconds:,.1f}{NBSP}s, {peak:,.0f}{NBSP}MiB")
        rows.append((stage, *cells))
    if rows:
        yield Table.of(("stage", *(group.name for group in groups)), rows)
