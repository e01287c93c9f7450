"""Which columns of a study's table differ: paired tests over users, corrected for their number, and their marks."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import polars as pl

from csrec_dist.errors import UserError
from csrec_dist.evaluation.significance import Paired, compare_ranks, holm
from csrec_dist.experiments.study.collecting import PROTOCOL, RANKS, RATING_GROUPS, TEACHER, TRUE_RANKS, USERS
from csrec_dist.experiments.study.views import TableOptions

LETTERS = "ᵃᵇᶜᵈᵉ"
HIGHER, LOWER = "↑↓"
TESTED = re.compile(r"(?:recall|ndcg|mrr)(?:[+-]|_true)?@(\d+)")
TRUE = "_true"
FEWEST_RESAMPLES = 2
"""The bootstrap interval is not shown."""

Key = tuple[int, str, str, int]
"""A test: the line of the table, the column, the metric, and the place in `better_than` of the column it is against."""


@dataclass(frozen=True)
class TableTests:
    """All tests of a table, with p-values adjusted for their number; `problem` says why some could not be made."""

    tests: dict[Key, Paired]
    problem: str = ""

    def marks(self, line: int, column: str, metric: str) -> str:
        """↑ with the letters of the columns that a cell is significantly above, ↓ with those that it is below."""
        found = [(letter, self.tests.get((line, column, metric, place))) for place, letter in enumerate(LETTERS)]
        sure = [(letter, test.difference > 0) for letter, test in found if test and test.is_significant]
        higher, lower = ("".join(letter for letter, is_up in sure if is_up is up) for up in (True, False))
        return (HIGHER + higher) * bool(higher) + (LOWER + lower) * bool(lower)

    def legend(self, options: TableOptions) -> str:
        """What the marks mean, and how they were tested."""
        pairs = list(zip(LETTERS, options.better_than, strict=False))
        names = ", ".join(f"{letter} {name}" for letter, name in pairs)
        text = (
            f"{HIGHER} higher, {LOWER} lower than {names}: p < 0.05 by Holm's correction over the {len(self.tests)} "
            "tests of this table; paired t-test over users, each with all its test rows, a row's value being its mean "
            "over the seeds that both have."
        )
        return f"{text} Not every row could be tested: {self.problem}" if self.problem else text


def compare_columns(options: TableOptions, columns: Sequence[str], lines: Sequence[pl.DataFrame]) -> TableTests:
    """The tests of a table whose lines have these runs.

    Two columns are compared over the seeds that both have. The columns of `better_than` are each tested against the
    ones before.
    """
    raw: dict[Key, Paired] = {}
    problem = ""
    for line, runs in enumerate(lines):
        for (place, other), column in product(enumerate(options.better_than[: len(LETTERS)]), columns):
            if column in options.better_than[: place + 1]:
                continue
            pair = [runs.filter(pl.col(options.columns) == name) for name in (other, column)]
            try:
                raw |= {(line, column, metric, place): test for metric, test in _tests(pair, options.metrics)}
            except UserError as error:
                problem = problem or str(error)
    adjusted = holm([test.p_value for test in raw.values()])
    return TableTests({key: replace(raw[key], p_value=p) for key, p in zip(raw, adjusted, strict=True)}, problem)


def _tests(pair: list[pl.DataFrame], metrics: Sequence[str]) -> Iterator[tuple[str, Paired]]:
    """The tests of two columns in those metrics, of students and teachers, that have a value for each test row."""
    for prefix, suffix in product(("", TEACHER), ("", TRUE)):
        known = {metric: match for metric in metrics if (match := TESTED.fullmatch(metric.removeprefix(prefix)))}
        tested = {
            metric.removeprefix(prefix).replace(TRUE, ""): (metric, int(match[1]))
            for metric, match in known.items()
            if metric.startswith(prefix) and (TRUE in metric) == bool(suffix)
        }
        ranks = f"{prefix}{TRUE_RANKS if suffix else RANKS}"
        if tested and (rows := _rows(pair, ranks)):
            first, second = (np.array([row[ranks] for row in side]) for side in rows)
            one = rows[0][0]
            groups = np.full(first.shape[1], -1) if one.get(RATING_GROUPS) is None else np.array(one[RATING_GROUPS])
            ranked = first[0] > 0  # a true item that is not in the catalog has rank 0
            top_n = sorted({cut_off for _, cut_off in tested.values()})
            options: dict[str, Any] = {"top_n": top_n, "num_resamples": FEWEST_RESAMPLES}
            users = np.array(one[USERS])[ranked]
            lines = compare_ranks(first[:, ranked], second[:, ranked], groups[ranked], users=users, **options)
            yield from ((tested[line.metric][0], line.paired) for line in lines if line.metric in tested)


def _rows(pair: list[pl.DataFrame], ranks: str) -> list[list[dict[str, Any]]]:
    """The runs of both columns, in one order of those seeds that have ranks in both; nothing if there is none.

    Raises:
        UserError: the runs cannot be compared.
    """
    sides = [{row["seed"]: row for row in side.to_dicts() if row.get(ranks) is not None} for side in pair]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    rows = [[side[seed] for seed in seeds] for side in sides] if seeds else []
    if len({row[PROTOCOL] for side in rows for row in side}) > 1:
        raise UserError("runs of one row were evaluated on different data or with different options.")
    if any(row.get(USERS) is None for side in rows for row in side):
        raise UserError("the results do not say which users the test rows are of.")
    return rows
