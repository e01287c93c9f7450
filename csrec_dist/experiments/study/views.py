"""What a study shows: tables, figures, and the popularity of the items in its data."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from csrec_dist.errors import did_you_mean

GROUPS = ("popularity", "popularity_decile", "history_length", "rating", "leak", "repeat")
"""Groups of a run's test rows, as in metrics.json."""


RANKING = ("recall", "ndcg", "mrr", "recall_true", "ndcg_true", "mrr_true", "recall+", "ndcg+", "recall-", "ndcg-")
AT_N = (*RANKING, "coverage", "gini", "average_popularity", "disagreement")
WHOLE = ("mrr", "mrr_true", "ece", "confidence", "accuracy", "count", "jensen_shannon", "seconds", "cpu_seconds")


def _known(metric: str) -> str:
    """The name of a metric as results have it: `ndcg@10`, or with a path, `teacher/popularity/rest_80%/ndcg@10`."""
    name, _, cut_off = metric.rpartition("/")[2].partition("@")
    fits = name in AT_N and re.fullmatch(r"[1-9]\d*", cut_off) if "@" in metric else name in WHOLE
    if not fits:
        known = [f"{each}@{cut_off or 10}" for each in AT_N] + list(WHOLE)
        raise ValueError(f"there is no metric {metric}{did_you_mean(metric.rpartition('/')[2], known)}")
    return metric


Metric = Annotated[str, AfterValidator(_known)]
When = dict[str, str | list[str]]
"""Selects the cells that have the value, or one of the values, of each axis named."""


class Part(BaseModel):
    """A part of a study's file."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class View(Part):
    """A view of the cells that have the values `where`: {axis: value or list of values}."""

    title: str = ""
    where: When = {}


class TableOptions(View):
    """A table with a row for each value of the axes `rows`, and a column for each value of `columns` and metric."""

    rows: list[str] = Field(min_length=1)
    columns: str
    metrics: list[Metric] = ["recall@10", "ndcg@10"]
    better_than: list[str] = Field([], description="Columns against which the others are tested and counted.")
    costs: bool = Field(False, description="Show the columns' CPU seconds as multiples of the first of `better_than`.")

    @model_validator(mode="after")
    def _costs_have_a_measure(self) -> Self:
        if self.costs and not self.better_than:
            raise ValueError(
                "costs are multiples of the first column of better_than, which is empty; name a column there"
            )
        return self

    @property
    def level(self) -> When:
        """Cells that are shown apart: a table has none."""
        return {}

    @property
    def panelled(self) -> list[str]:
        """The axes whose values tell such cells apart."""
        return []

    @property
    def shown(self) -> list[str]:
        """The axes whose values are shown apart."""
        return [*self.rows, self.columns]

    @property
    def axes(self) -> list[str]:
        """The axes it names."""
        return [*self.shown, *self.where]

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"the table of {', '.join(self.rows)} by {self.columns}"


class FigureOptions(View):
    """A figure: a metric over the axis `x` (or over one of `GROUPS` of each run's test rows).

    There is a line for each value of `lines` and a panel for each value of `panels`. `level` selects
    cells that are drawn as a dashed line in every panel: {axis: value}.
    """

    name: str
    metric: Metric = "ndcg@10"
    x: str
    lines: str | None = None
    panels: str | None = None
    style: Literal["lines", "bars"] = "lines"
    level: When = {}

    @model_validator(mode="after")
    def _levels_are_of_axes(self) -> Self:
        if self.level and self.x in GROUPS:
            raise ValueError(f"figure {self.name}: a figure over {self.x} has no level; make it a line")
        return self

    @property
    def panelled(self) -> list[str]:
        """The axes whose values tell cells of `level` apart."""
        return [self.panels] if self.panels else []

    @property
    def shown(self) -> list[str]:
        """The axes whose values are shown apart."""
        return [axis for axis in (self.lines, self.panels, None if self.x in GROUPS else self.x) if axis]

    @property
    def axes(self) -> list[str]:
        """The axes it names."""
        return [*self.shown, *self.where, *self.level]

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"figure {self.name}"


class CurveOptions(View):
    """How often items occur in training, the most popular first, with a panel for each value of the axis `panels`."""

    name: str
    panels: str | None = None

    @property
    def axes(self) -> list[str]:
        """The axes it names."""
        return [*([self.panels] if self.panels else []), *self.where]
