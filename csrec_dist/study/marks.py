"""Marks of a table's cells: from which columns they differ by a paired test over the test rows."""

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import product

import polars as pl

from csrec_dist.compare import compare_models
from csrec_dist.errors import UserError
from csrec_dist.study.collecting import TEACHER, TEACHER_MODEL
from csrec_dist.study.views import TableOptions

LETTERS = "ᵃᵇᶜᵈᵉ"
TESTED = re.compile(r"(?:recall|ndcg|mrr)[+-]?@(\d+)")
FEWEST_RESAMPLES = 2
"""The bootstrap interval is not shown."""

Marks = dict[tuple[str, str], str]


def find_marks(options: TableOptions, columns: list[str], group: pl.DataFrame) -> tuple[Marks, str]:
    """Superscripts by (column, metric) of one line of a table, and why a pair of columns could not be tested, if so.

    Two columns are compared over the seeds that both have. Of `better_than` itself each is tested against those
    before it.
    """
    marks: defaultdict[tuple[str, str], str] = defaultdict(str)
    problem = ""
    for (letter, other), column in product(zip(LETTERS, options.better_than, strict=False), columns):
        if column in options.better_than[: options.better_than.index(other) + 1]:
            continue
        pair = [group.filter(pl.col(options.columns) == name) for name in (other, column)]
        try:
            for metric in _differing(pair, options.metrics):
                marks[column, metric] += letter
        except UserError as error:
            problem = problem or str(error)
    return dict(marks), problem


def _differing(pair: list[pl.DataFrame], metrics: Iterable[str]) -> list[str]:
    """The metrics, students' and teachers', in which two columns differ."""
    return [
        f"{prefix}{name}"
        for prefix in ("", TEACHER)
        for name in _test(
            pair, [metric.removeprefix(prefix) for metric in metrics if metric.startswith(prefix)], prefix
        )
    ]


def _test(pair: list[pl.DataFrame], metrics: list[str], prefix: str) -> set[str]:
    """Those of the metrics in which the students (or with the prefix their teachers) differ, p < 0.05."""
    top_n = sorted({int(found[1]) for metric in metrics if (found := TESTED.fullmatch(metric))})
    seeds = set(pair[0]["seed"]) & set(pair[1]["seed"])
    models = [_models(side.filter(pl.col("seed").is_in(seeds)), prefix) for side in pair]
    if not top_n or not all(models):
        return set()
    first, second = (",".join(side) for side in models)
    lines = compare_models(first, second, top_n=top_n, num_resamples=FEWEST_RESAMPLES).lines
    return {line.metric for line in lines if line.paired.is_significant} & set(metrics)


def _models(side: pl.DataFrame, prefix: str) -> list[str]:
    """RUN:MODEL of each run that has such a model."""
    models = [model if prefix else "student" for model in side[TEACHER_MODEL]]
    return [f"{run}:{model}" for run, model in zip(side["run"], models, strict=True) if model]
