"""Marks of a table's cells: from which columns they differ by a paired test over the test rows."""

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import product
from typing import Any

import polars as pl
import torch
from torch import Tensor

from csrec_dist.compare import compare_ranks
from csrec_dist.errors import UserError
from csrec_dist.study.collecting import PROTOCOL, RANKS, RATING_GROUPS, TEACHER
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
    sides = [_tested(side, prefix) for side in pair]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if not top_n or not seeds:
        return set()
    rows = [[side[seed] for seed in seeds] for side in sides]
    if len({row[PROTOCOL] for side in rows for row in side}) > 1:
        raise UserError("runs of one line were evaluated on different data or with different options.")
    first, second = (torch.stack([_numbers(row[f"{prefix}{RANKS}"]) for row in side]) for side in rows)
    groups = rows[0][0].get(RATING_GROUPS)
    ratings = torch.full(first.shape[1:], -1) if groups is None else _numbers(groups)
    lines = compare_ranks(first, second, ratings, top_n=top_n, num_resamples=FEWEST_RESAMPLES)
    return {line.metric for line in lines if line.paired.is_significant} & set(metrics)


def _tested(side: pl.DataFrame, prefix: str) -> dict[int, dict[str, Any]]:
    """By seed, the runs of a column that have ranks of the student, or with the prefix of their teachers."""
    name = f"{prefix}{RANKS}"
    return {row["seed"]: row for row in side.to_dicts() if row.get(name) is not None}


def _numbers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
