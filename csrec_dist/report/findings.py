"""The evaluation of a run's models as sections of its report; metrics that were not computed have no section."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from csrec_dist.evaluation.options import GROUPINGS, NUM_BINS, is_adverse, metric_title
from csrec_dist.report.answer import ANSWERED, SELECTED
from csrec_dist.report.document import NONE, Block, Cell, Fold, Picture, Section, Table, Text, best_of
from csrec_dist.report.names import figure, group_title, list_title
from csrec_dist.runs.inputs import protocol
from csrec_dist.runs.run import ResultRow, Run

OF_TRUE = "_true"
LOWER_IS_BETTER = ("ece", "gini")
LIST_PICTURES = ("coverage@10", "gini@10", "average_popularity@10")
NEITHER = ("average_popularity", "confidence")
"""Metrics of which no value is the best."""

Models = Mapping[str, Mapping[str, float | None]]
Pictures = Mapping[str, Picture]


def metrics_section(run: Run) -> Section:
    """Test metrics at the selected cut-off, the other cut-offs folded; by rating, of true targets, on validation."""
    return Section.of("Metrics", _metrics(run))


def _metrics(run: Run) -> Iterator[Block]:
    if not run.results:
        yield Text("No model has been trained yet.")
    tests = {row.title: row.test for row in run.results}
    names = _names(tests.values())
    rated = [name for name in names if name.partition("@")[0].endswith(("+", "-"))]
    true = [name for name in names if OF_TRUE in name]
    plain = [name for name in names if name not in (*rated, *true)]
    yield from _selected(plain, tests)
    # As it was evaluated: the config may have other options by now.
    evaluated = protocol(run) if run.record("evaluate") else {}
    if (precision := evaluated.get("evaluation.matmul_precision", "highest")) != "highest":
        yield Text(
            f"GPUs ranked the items by products in TF32 (evaluation.matmul_precision: {precision}): ranks may differ."
        )
    if run.hidden_targets:
        yield Text(f"{run.hidden_targets} Groups of test rows below has the metrics without them.")
    yield from _others("Test, other cut-offs", plain, tests)
    if rated:
        delta = f"δ = {evaluated.get('evaluation.min_rating', run.config.evaluation.min_rating):g}"
        yield Text("Test, by rating", is_strong=True)
        yield Text(f"⁺: test rows whose target is rated at least {delta}; ⁻: test rows whose target is rated lower.")
        yield from _selected(rated, tests)
        yield from _others("Test, by rating, other cut-offs", rated, tests)
    if true:
        yield Text("Test, true targets", is_strong=True)
        yield Text("Computed from the ranks of the items users truly preferred instead of the logged targets.")
        yield from _selected(true, tests)
        yield from _others("Test, true targets, other cut-offs", true, tests)
    valid = {row.title: row.valid for row in run.results}
    if valid_names := _names(valid.values()):
        yield Fold("Validation", (*_selected(valid_names, valid), *_of_others(valid_names, valid)))


def _names(models: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for metrics in models for name in metrics))


def _cut_off(name: str) -> int:
    """The n of a metric; of one without, the selected."""
    return int(name.partition("@")[2] or SELECTED)


def _selected(names: Sequence[str], models: Models) -> Iterator[Table]:
    """The metrics at the selected cut-off, and those without one."""
    yield from _by_model([name for name in names if _cut_off(name) == SELECTED], models)


def _of_others(names: Sequence[str], models: Models) -> Iterator[Table]:
    """A table for each other cut-off."""
    for n in sorted({_cut_off(name) for name in names} - {SELECTED}):
        yield from _by_model([name for name in names if _cut_off(name) == n], models)


def _others(title: str, names: Sequence[str], models: Models) -> Iterator[Fold]:
    if tables := tuple(_of_others(names, models)):
        yield Fold(title, tables)


def _by_model(names: Sequence[str], models: Models) -> Iterator[Table]:
    """A table of these metrics with a row for each model that has some; the best of each column is marked."""
    evaluated = {title: metrics for title, metrics in models.items() if metrics}
    if not names or not evaluated:
        return
    columns = [_column(name, [metrics.get(name) for metrics in evaluated.values()]) for name in names]
    rows = [(title, *cells) for title, cells in zip(evaluated, zip(*columns, strict=True), strict=True)]
    yield Table.of(("model", *(_title(name) for name in names)), rows)


def _title(name: str) -> str:
    if name.startswith(("coverage", "gini", "average")):
        return list_title(name)
    return {"ece": "ECE", "confidence": "mean confidence", "accuracy": "accuracy"}.get(
        name, metric_title(name.replace(OF_TRUE, ""))
    )


def _column(name: str, values: Sequence[float | None], lowest: bool = False) -> list[Cell]:
    marks = best_of(values, lowest=lowest or name.startswith(LOWER_IS_BETTER) or is_adverse(name))
    is_marked = not name.startswith(NEITHER)
    digits = ",.1f" if name.startswith("average_popularity") else ".4f"
    texts = [NONE if value is None else format(value, digits) for value in values]
    return [Cell(text, is_best and is_marked) for text, is_best in zip(texts, marks, strict=True)]


def groups_section(results: Sequence[ResultRow], pictures: Pictures) -> Section:
    """NDCG@10 of all models in each group of test rows: pictures, and folded a table for each grouping."""
    return Section.of("Groups of test rows", _groups(results, pictures))


def _groups(results: Sequence[ResultRow], pictures: Pictures) -> Iterator[Block]:
    grouped = [row for row in results if row.groups]
    if not grouped:
        return
    yield Text(f"{metric_title(ANSWERED)} of each group; metrics.json has the other metrics.")
    yield from shown(pictures, "popularity_decile", "history_length", "groups")
    yield Fold("Groups in figures", tuple(_group_tables(grouped)))


def _group_tables(grouped: Sequence[ResultRow]) -> Iterator[Table]:
    for name, title in GROUPINGS.items():
        if name not in grouped[0].groups:
            continue
        rows: list[tuple[str | Cell, ...]] = []
        for group, metrics in grouped[0].groups[name].items():
            values = [row.groups[name][group].get(ANSWERED) for row in grouped]
            cells = _column(ANSWERED, values, lowest=group.startswith("below_"))  # targets rated low
            rows.append((group_title(name, group), f"{metrics['count']:,}", *cells))
        yield Table.of((title, "rows", *(row.title for row in grouped)), rows)


def lists_section(results: Sequence[ResultRow], pictures: Pictures) -> Section:
    """What the recommended lists hold."""
    return Section.of("Recommended lists", _lists(results, pictures))


def _lists(results: Sequence[ResultRow], pictures: Pictures) -> Iterator[Block]:
    models = {row.title: row.lists for row in results if row.lists}
    names = _names(models.values())
    if not names:
        return
    yield Text(
        "Coverage is the share of the catalog that appears in at least one list; the Gini index, between 0 and 1, "
        "measures how unevenly the lists use the items; average popularity is the mean training count of the listed "
        "items."
    )
    yield from shown(pictures, *LIST_PICTURES)
    yield from _selected(names, models)
    yield from _others("Recommended lists, other cut-offs", names, models)


def calibration_section(results: Sequence[ResultRow], pictures: Pictures) -> Section:
    """Whether the models' probabilities mean what they say."""
    return Section.of("Calibration", _calibration(results, pictures))


def _calibration(results: Sequence[ResultRow], pictures: Pictures) -> Iterator[Block]:
    models = {row.title: row.calibration for row in results if row.calibration}
    if not models:
        return
    yield Text(
        "Confidence is the probability, over the full catalog at T = 1, of a model's top-1 item; accuracy is the share "
        "of test rows in which that item is the target; ECE is the expected calibration error over "
        f"{NUM_BINS} bins of confidence."
    )
    yield from shown(pictures, "reliability")
    yield from _by_model(("ece", "confidence", "accuracy"), models)


def diversity_section(diversity: Mapping[str, Any]) -> Section:
    """How much the members differ: each pair, and the mean if there are several pairs."""
    return Section.of("Diversity of the teachers", _diversity(diversity))


def _diversity(diversity: Mapping[str, Any]) -> Iterator[Block]:
    if not diversity:
        return
    names = [name for name in diversity if name not in ("count", "pairs")]
    yield Text(
        f"Means over {diversity['count']:,} test rows. Disagreement@n is the share of the top-n lists that two members "
        f"do not share; the Jensen–Shannon divergence of their probabilities is at most ln 2 = {math.log(2):.4f}."
    )
    rows = [[", ".join(pair["members"]), *(figure(pair, name) for name in names)] for pair in diversity["pairs"]]
    if len(rows) > 1:
        rows.append(["mean of the pairs", *(figure(diversity, name) for name in names)])
    titles = {"jensen_shannon": "Jensen–Shannon divergence, nats"}
    yield Table.of(("members", *(titles.get(name, name.capitalize()) for name in names)), rows)


def shown(pictures: Pictures, *names: str) -> Iterator[Picture]:
    """The pictures of these names, as far as there was data to draw them."""
    return (pictures[name] for name in names if name in pictures)
