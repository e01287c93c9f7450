"""Paired tests of whether two models, perhaps trained with several seeds, differ on the same test rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from rich.table import Table

from csrec_dist.errors import UserError
from csrec_dist.evaluation.per_row import rating_group
from csrec_dist.evaluation.significance import Line, compare_ranks
from csrec_dist.files import changed_keys
from csrec_dist.report.differences import metrics_table
from csrec_dist.runs.inputs import protocol
from csrec_dist.runs.run import Evaluated, Run


@dataclass(frozen=True)
class Comparison:
    """Both sides, in the order of their seeds, and a line for each metric."""

    sides: tuple[tuple[Evaluated, ...], tuple[Evaluated, ...]]
    lines: tuple[Line, ...]

    @property
    def first(self) -> tuple[str, ...]:
        """Names of the first side's models."""
        return tuple(model.name for model in self.sides[0])

    @property
    def second(self) -> tuple[str, ...]:
        """Names of the second side's models."""
        return tuple(model.name for model in self.sides[1])

    def line(self, metric: str) -> Line | None:
        """That of a metric, if it was compared."""
        return next((line for line in self.lines if line.metric == metric), None)


def parse_side(text: str) -> list[Evaluated]:
    """The models that RUN[:MODEL][,RUN[:MODEL]…] names; the default model is the student.

    Raises:
        UserError: a folder is not the folder of a run.
    """
    models = []
    for part in text.split(","):
        folder, colon, model = part.rpartition(":")
        if not colon or Path(part).exists():  # a folder's name may have a colon
            folder, model = part, "student"
        models.append(Evaluated(Run.open(folder), model))
    return models


def compare_models(
    first: str, second: str, *, top_n: Sequence[int] = (10,), num_resamples: int | None = None, seed: int = 0
) -> Comparison:
    """Recall, NDCG and MRR at each n of two models, paired by row; with ratings also the filtered and adverse ones.

    Each side is RUN[:MODEL], or several of these separated by commas: the same model trained with several seeds.
    Seeds are paired; a row's value is its mean over the seeds, so users with their rows, not seeds, are the sample.

    Raises:
        UserError: a side is not a run or not evaluated, the sides have different seeds, they were evaluated on
            different datasets, rows or options, a cut-off is less than 1, or the seed is negative.
    """
    if min(top_n) < 1:
        raise UserError(f"A cut-off must be at least 1, not {min(top_n)}: for example -n 5 10.")
    if seed < 0:
        raise UserError(f"The seed of the bootstrap is at least 0, not {seed}.")
    return compare_evaluated(parse_side(first), parse_side(second), top_n=top_n, num_resamples=num_resamples, seed=seed)


def compare_evaluated(
    first: list[Evaluated],
    second: list[Evaluated],
    *,
    top_n: Sequence[int] = (10,),
    num_resamples: int | None = None,
    seed: int = 0,
) -> Comparison:
    """The same of models at hand."""
    sides = _paired_by_seed(first, second)
    _check_protocol([model for side in sides for model in side])
    tables = [[model.ranks for model in side] for side in sides]
    _check_rows(sides, tables)
    ranks = [np.stack([table["rank"].to_numpy() for table in side]) for side in tables]
    ratings = tables[0][0]["rating"].fill_null(math.nan).to_numpy()
    groups = rating_group(ratings, protocol(sides[0][0].run)["evaluation.min_rating"])
    users = tables[0][0]["user"].to_numpy()
    lines = compare_ranks(ranks[0], ranks[1], groups, users=users, top_n=top_n, num_resamples=num_resamples, seed=seed)
    return Comparison((tuple(sides[0]), tuple(sides[1])), tuple(lines))


def _paired_by_seed(first: list[Evaluated], second: list[Evaluated]) -> tuple[list[Evaluated], list[Evaluated]]:
    """Both sides in the order of their seeds, which must be equal; two single models may have different seeds."""
    if len(first) == len(second) == 1:
        return first, second
    sides = [sorted(side, key=lambda model: model.run.config.seed) for side in (first, second)]
    seeds = [[model.run.config.seed for model in side] for side in sides]
    if seeds[0] != seeds[1] or len(set(seeds[0])) < len(seeds[0]):
        raise UserError(
            f"Runs are paired by their seeds, but one side has seeds {seeds[0]}, the other {seeds[1]}; give each "
            "seed once on both sides."
        )
    return sides[0], sides[1]


def _check_protocol(models: list[Evaluated]) -> None:
    first, *others = models
    for other in others:
        if differing := changed_keys(protocol(first.run), protocol(other.run)):
            raise UserError(
                f"{first.name} and {other.name} cannot be compared: they were evaluated with different "
                f"{' and '.join(differing)}. Compare runs with the same dataset and evaluation options."
            )


def _check_rows(sides: Sequence[list[Evaluated]], tables: list[list[pl.DataFrame]]) -> None:
    columns = ["row", "user", "target"]
    one, name = tables[0][0].select(columns), sides[0][0].name
    if one["user"].n_unique() < 2:
        raise UserError(
            f"{name} has {len(one)} test rows of {one['user'].n_unique()} users; a comparison needs two users at least."
        )
    for side, models in zip(tables, sides, strict=True):
        for table, model in zip(side, models, strict=True):
            if not table.select(columns).equals(one):
                raise UserError(f"{name} and {model.name} cannot be compared: their test rows or targets differ.")


def comparison_table(comparison: Comparison) -> Table:
    """The comparison for the terminal; * marks p < 0.05."""
    first, second = (", ".join(names) for names in (comparison.first, comparison.second))
    caption = "* p < 0.05, paired t-test over users"
    table = Table(title=f"A  {first}\nB  {second}", title_justify="left", caption=caption)
    cells = metrics_table(comparison.lines)
    for number, name in enumerate(cells.header):
        table.add_column(name, justify="right" if number >= cells.num_names else "left", no_wrap=True)
    for row, line in zip(cells.rows, comparison.lines, strict=True):
        texts = [cell.text for cell in row]
        mark = "*" if line.paired.is_significant else " "
        texts[cells.header.index("p")] += mark
        table.add_row(*texts, style="bold" if line.paired.is_significant else None)
    return table
