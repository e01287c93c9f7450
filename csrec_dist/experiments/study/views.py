"""What a study shows of its results: tables, figures, and the popularity of the items of its data."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

GROUPS = ("popularity", "popularity_decile", "history_length", "rating", "leak", "repeat")
"""Groups of a run's test rows, as in metrics.json."""


When = dict[str, str | list[str]]
"""Cells that have, of each axis named, the value or one of the values named."""


class Part(BaseModel):
    """A part of a study's file."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class View(Part):
    """Something shown of the cells that have the values `where`: {axis: value or list of values}."""

    title: str = ""
    where: When = {}


class TableOptions(View):
    """A table: a line for each value of the axes `rows`, a column for each value of `columns` and metric."""

    rows: list[str]
    columns: str
    metrics: list[str] = ["recall@10", "ndcg@10"]
    better_than: list[str] = Field([], description="columns against which the others are tested and counted")
    costs: bool = Field(False, description="the columns' CPU seconds as multiples of the first of `better_than`")

    @model_validator(mode="after")
    def _costs_have_a_measure(self) -> Self:
        if self.costs and not self.better_than:
            raise ValueError("costs are multiples of the first of better_than, which is empty")
        return self

    @property
    def axes(self) -> list[str]:
        """The axes that it names."""
        return [*self.rows, self.columns, *self.where]

    @property
    def label(self) -> str:
        """What to call it in a message."""
        return f"the table of {', '.join(self.rows)} by {self.columns}"


class FigureOptions(View):
    """A figure: a metric over the axis `x` (or over one of `GROUPS` of each run's test rows).

    There is a line for each value of `lines` and a panel for each value of `panels`. `level` are cells that stand
    as a dashed line in every panel: {axis: value}.
    """

    name: str
    metric: str = "ndcg@10"
    x: str
    lines: str | None = None
    panels: str | None = None
    style: Literal["lines", "bars"] = "lines"
    level: When = {}

    @model_validator(mode="after")
    def _levels_are_of_axes(self) -> Self:
        if self.level and self.x in GROUPS:
            raise ValueError(f"figure {self.name}: over {self.x} there is no level; make it a line")
        return self

    @property
    def axes(self) -> list[str]:
        """The axes that it names."""
        named = [self.lines, self.panels, *self.where, *self.level, *([] if self.x in GROUPS else [self.x])]
        return [axis for axis in named if axis]

    @property
    def label(self) -> str:
        """What to call it in a message."""
        return f"figure {self.name}"


class CurveOptions(View):
    """How often the items occur in training, the most popular first: a panel for each value of the axis `panels`."""

    name: str
    panels: str | None = None

    @property
    def axes(self) -> list[str]:
        """The axes that it names."""
        return [*([self.panels] if self.panels else []), *self.where]
