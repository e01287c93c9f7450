"""The evaluation of a run's models as sections of its report; metrics that were not requested have no section."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from csrec_dist.evaluation.options import GROUPINGS, NUM_BINS, metric_title
from csrec_dist.report.tables import NONE, figure, images, table
from csrec_dist.runs.run import ResultRow, Run

DECILES = "NDCG@10 by decile of the target's popularity"
RELIABILITY = "Reliability: accuracy by confidence"
"""Titles of the diagrams that stand in sections of their own."""
GROUP_METRIC = "ndcg@10"
OF_TRUE = "_true"


def evaluation_sections(run: Run, diagrams: Mapping[str, Path]) -> Iterator[str]:
    """The sections in order; `diagrams`, by title, are shown in their sections."""
    yield from _metrics(run)
    yield from _groups(run.results, diagrams)
    yield from _lists(run.results)
    yield from _calibration(run.results, diagrams)
    yield from _diversity(run.metrics.get("diversity", {}))


def _metrics(run: Run) -> Iterator[str]:
    yield "## Metrics"
    if not run.results:
        yield "No model has been trained yet."
    tests = {row.title: row.test for row in run.results}
    names = _names(tests.values())
    rated = [name for name in names if name.partition("@")[0].endswith(("+", "-"))]
    true = [name for name in names if OF_TRUE in name]
    plain = [name for name in names if name not in (*rated, *true)]
    yield from _by_model("### Test", plain, tests)
    if (precision := run.config.evaluation.matmul_precision) != "highest":
        yield f"GPUs ranked the items by products in TF32 (evaluation.matmul_precision: {precision}): ranks may differ."
    if run.hidden_targets:
        yield f"{run.hidden_targets} Groups of test rows below has the metrics without them."
    if rated:
        delta = f"δ = {run.config.evaluation.min_rating:g}"
        lines = f"⁺: test rows whose target is rated at least {delta}; ⁻: test rows whose target is rated lower."
        yield from _by_model(f"### Test, by rating\n\n{lines}", rated, tests)
    titles = [metric_title(name.replace(OF_TRUE, "")) for name in true]
    lines = "Computed from the ranks of the items users truly preferred instead of the logged targets."
    yield from _by_model(f"### Test, true targets\n\n{lines}", true, tests, titles)
    valid = {row.title: row.valid for row in run.results}
    yield from _by_model("### Validation", _names(valid.values()), valid)


def _names(models: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for metrics in models for name in metrics))


def _by_model(
    head: str,
    names: Sequence[str],
    models: Mapping[str, Mapping[str, float | None]],
    titles: Sequence[str] | None = None,
) -> Iterator[str]:
    """A heading and a table of these metrics, with a row for each model that has them; nothing without metrics."""
    rows = [[title, *(figure(metrics, name) for name in names)] for title, metrics in models.items() if metrics]
    if names and rows:
        yield head
        yield table(["model", *(titles or map(metric_title, names))], rows)


def _groups(results: Sequence[ResultRow], diagrams: Mapping[str, Path]) -> Iterator[str]:
    """NDCG@10 of all models in each group of test rows, with a table for each grouping."""
    grouped = [row for row in results if row.groups]
    if not grouped:
        return
    yield "## Groups of test rows"
    yield f"{metric_title(GROUP_METRIC)} of each group; metrics.json has the other metrics."
    for name, title in GROUPINGS.items():
        if name in grouped[0].groups:
            rows = [
                [
                    _group_title(name, group),
                    f"{metrics['count']:,}",
                    *(figure(row.groups[name][group], GROUP_METRIC) for row in grouped),
                ]
                for group, metrics in grouped[0].groups[name].items()
            ]
            yield table([title, "rows", *(row.title for row in grouped)], rows)
    yield from _shown(diagrams, DECILES)


def _group_title(name: str, group: str) -> str:
    if name == "popularity_decile":
        return {"1": "1 (most popular items)", "10": "10 (least popular items)"}.get(group, group)
    return {
        "popular_20%": "most popular 20% of the items",
        "rest_80%": "other 80%",
        "clean": "no",
        "leaked": "yes",
        "new": "no",
        "repeated": "yes",
    }.get(group, group.replace("_", " "))


def _lists(results: Sequence[ResultRow]) -> Iterator[str]:
    models = {row.title: row.lists for row in results if row.lists}
    names = _names(models.values())
    if not names:
        return
    yield "## Recommended lists"
    yield (
        "Coverage is the share of the catalog that appears in at least one list; the Gini index, between 0 and 1, "
        "measures how unevenly the lists use the items; average popularity is the mean training count of the listed "
        "items."
    )
    titles = [name.replace("_", " ").capitalize().replace("Gini", "Gini index") for name in names]
    rows = [[title, *(_list_figure(lists, name) for name in names)] for title, lists in models.items()]
    yield table(["model", *titles], rows)


def _list_figure(lists: Mapping[str, float], name: str) -> str:
    if name.startswith("average_popularity"):
        return f"{lists[name]:,.1f}" if name in lists else NONE
    return figure(lists, name)


def _calibration(results: Sequence[ResultRow], diagrams: Mapping[str, Path]) -> Iterator[str]:
    models = {row.title: row.calibration for row in results if row.calibration}
    if not models:
        return
    yield "## Calibration"
    yield (
        "Confidence is the probability, over the full catalog at T = 1, of a model's top-1 item; accuracy is the share "
        "of test rows in which that item is the target; ECE is the expected calibration error over "
        f"{NUM_BINS} bins of confidence."
    )
    names = ("ece", "confidence", "accuracy")
    rows = [[title, *(figure(values, name) for name in names)] for title, values in models.items()]
    yield table(["model", "ECE", "mean confidence", "accuracy"], rows)
    yield from _shown(diagrams, RELIABILITY)


def _diversity(diversity: Mapping[str, Any]) -> Iterator[str]:
    """How much the members differ: each pair, and the mean if there are several pairs."""
    if not diversity:
        return
    names = [name for name in diversity if name not in ("count", "pairs")]
    yield "## Diversity of the teachers"
    yield (
        f"Means over {diversity['count']:,} test rows. Disagreement@n is the share of the top-n lists that two members "
        f"do not share; the Jensen–Shannon divergence of their probabilities is at most ln 2 = {math.log(2):.4f}."
    )
    rows = [[", ".join(pair["members"]), *(figure(pair, name) for name in names)] for pair in diversity["pairs"]]
    if len(rows) > 1:
        rows.append(["mean of the pairs", *(figure(diversity, name) for name in names)])
    titles = {"jensen_shannon": "Jensen–Shannon divergence, nats"}
    yield table(["members", *(titles.get(name, name.capitalize()) for name in names)], rows)


def _shown(diagrams: Mapping[str, Path], title: str) -> Iterable[str]:
    return images({title: diagrams[title]} if title in diagrams else {})
