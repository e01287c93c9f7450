"""The definition of a study: a base config, axes whose values override it, seeds, tables and figures."""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from csrec_dist.config import Config, parse_config, read_yaml, set_key
from csrec_dist.errors import UserError
from csrec_dist.experiments.study.views import CurveOptions, FigureOptions, Part, TableOptions, When
from csrec_dist.runs.run import Run

Setting = dict[str, Any]
Cell = dict[str, str]

RUNS_KEYS = ("config", "seeds", "axes", "adjust", "skip", "published")
"""What a study that is part of another inherits, unless it sets it itself."""

OWN_KEYS = ("name", "seed", "output")
"""The keys that a study gives each of its runs."""
COLUMNS = (
    *("seed", "run", "settings", "teacher_model", "seconds", "cpu_seconds", "ranks", "users", "rating_groups"),
    *("true_ranks", "protocol", "mrr", "mrr_true"),
)
"""What results have beside the axes; the names of other metrics have a sign that those of axes have not."""


def matches(when: When, cell: Cell) -> bool:
    """Whether a cell has the value, or one of the values, of each axis in `when`."""
    return all(cell.get(axis) in ([value] if isinstance(value, str) else value) for axis, value in when.items())


def _varied(cells: list[Cell], shown: list[str]) -> dict[str, set[str]]:
    """The axes with several values in the cells, and these, but for those that are shown."""
    values = {axis: {cell[axis] for cell in cells} for axis in (cells[0] if cells else {}) if axis not in shown}
    return {axis: each for axis, each in values.items() if len(each) > 1}


class Adjustment(Part):
    """Settings for the cells that have these values: {axis: value or list of values}."""

    when: When
    set: Setting


class Published(Part):
    """Values of the paper, in percent, for the cells that match."""

    when: When
    values: dict[str, float]


class Study(Part):
    """A study as its file describes it; `path` is that file."""

    path: Path
    title: str
    source: str = Field("", description="The table or figure of the paper, and how this one differs.")
    part_of: str | None = Field(None, description="The study in the same folder whose runs this one uses.")
    only: When = Field({}, description="The combinations to take from it.")
    config: str = Field(description="The base config, relative to the study's file.")
    seeds: list[int] = Field([0], min_length=1)
    axes: dict[str, dict[str, Setting]] = Field(min_length=1)
    adjust: list[Adjustment] = Field([])
    skip: list[When] = Field([], description="Combinations to leave out.")
    tables: list[TableOptions] = Field([])
    figures: list[FigureOptions] = Field([])
    curves: list[CurveOptions] = Field([])
    published: list[Published] = Field([])

    @field_validator("axes", mode="before")
    @classmethod
    def _name_values(cls, axes: Any) -> Any:
        """Names of values are text; a value without settings changes nothing."""
        if not isinstance(axes, dict):
            return axes
        return {
            axis: {str(name): settings or {} for name, settings in values.items()}
            if isinstance(values, dict)
            else values
            for axis, values in axes.items()
        }

    @model_validator(mode="after")
    def _axes_and_values_are_known(self) -> Self:
        named = {axis for view in self._views for axis in view.axes} | {axis for axis, _ in self._named}
        if unknown := sorted(named - self.axes.keys()):
            raise ValueError(f"unknown axis {', '.join(unknown)}; the axes are {', '.join(self.axes)}")
        for axis, values in self._named:
            missing = ({values} if isinstance(values, str) else set(values)) - self.axes[axis].keys()
            if missing:
                raise ValueError(
                    f"{axis} has no value {', '.join(missing)}; its values are {', '.join(self.axes[axis])}"
                )
        return self

    @model_validator(mode="after")
    def _runs_have_names_of_their_own(self) -> Self:
        if taken := [axis for axis in self.axes if axis in COLUMNS or not axis.isidentifier()]:
            raise ValueError(
                f"an axis cannot be named {', '.join(taken)}: results have a column of that name, or names of axes are "
                "letters, digits and _"
            )
        for values in ([self._folder(cell) for cell in self.cells], self.seeds):
            twice = [str(value) for value, count in Counter(values).items() if count > 1]
            if twice:
                raise ValueError(f"{', '.join(twice)} would name several runs; rename a value of an axis, or a seed")
        return self

    @property
    def _named(self) -> list[tuple[str, str | list[str]]]:
        """Every mention of values of an axis."""
        whens = [*self.skip, self.only, *(each.when for each in self.adjust), *(each.when for each in self.published)]
        whens += [view.where for view in self._views] + [figure.level for figure in self.figures]
        whens += [{each.columns: each.better_than} for each in self.tables]
        return [pair for when in whens for pair in when.items()]

    @model_validator(mode="after")
    def _views_tell_cells_apart(self) -> Self:
        """Different cells are never averaged: a view shows all axes that have several values in it."""
        views: list[TableOptions | FigureOptions] = [*self.tables, *self.figures]
        for view in views:
            cells = [cell for cell in self.cells if matches(view.where, cell)]
            level = [cell for cell in cells if matches(view.level, cell)] if view.level else []
            drawn = [cell for cell in cells if cell not in level]
            mixed = {**_varied(drawn, view.shown), **_varied(level, view.panelled)}
            if mixed:
                raise ValueError(
                    f"{view.label} would average over {', '.join(mixed)}; show it, or fix its value with where"
                )
        return self

    @model_validator(mode="after")
    def _panels_of_curves_have_one_dataset(self) -> Self:
        for curve in self.curves:
            datasets: dict[str, list[Setting]] = {}
            for cell in self.cells:
                if matches(curve.where, cell):
                    settings = self.settings(cell)
                    dataset = {key: value for key, value in settings.items() if key.partition(".")[0] == "dataset"}
                    of_panel = datasets.setdefault(cell[curve.panels] if curve.panels else "", [])
                    of_panel += [dataset] if dataset not in of_panel else []
            if any(len(of_panel) > 1 for of_panel in datasets.values()):
                raise ValueError(
                    f"curve {curve.name} has cells with different datasets in one panel; give it panels, or where"
                )
        return self

    @property
    def _views(self) -> list[TableOptions | FigureOptions | CurveOptions]:
        return [*self.tables, *self.figures, *self.curves]

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.stem

    @property
    def home(self) -> str:
        """The study whose folder has the runs."""
        return self.part_of or self.name

    @cached_property
    def cells(self) -> list[Cell]:
        """All combinations of the axes' values except those left out."""
        combinations = product(*self.axes.values())
        cells = [dict(zip(self.axes, values, strict=True)) for values in combinations]
        return [
            cell for cell in cells if matches(self.only, cell) and not any(matches(each, cell) for each in self.skip)
        ]

    def constants(self, where: When) -> Cell:
        """The axes with a single value in all matching cells, and that value."""
        return {axis: values[0] for axis, values in self.values(where).items() if len(values) == 1}

    def values(self, where: When) -> dict[str, list[str]]:
        """The values of each axis in the cells that match, in the axis's order."""
        cells = [cell for cell in self.cells if matches(where, cell)]
        return {
            axis: [value for value in self.axes[axis] if any(cell[axis] == value for cell in cells)]
            for axis in self.axes
        }

    def settings(self, cell: Cell) -> Setting:
        """What a cell's values and the adjustments set."""
        settings: Setting = {}
        for axis, value in cell.items():
            settings |= self.axes[axis][value]
        for adjustment in self.adjust:
            settings |= adjustment.set if matches(adjustment.when, cell) else {}
        return settings

    def entries(self, output: Path, overrides: dict[str, Any]) -> Iterator["Entry"]:
        """The runs, by seed and then by cell; UserError that names a cell whose config is wrong."""
        raw = read_yaml(self.path.parent / self.config)
        for seed in self.seeds:
            for cell in self.cells:
                yield self._entry(deepcopy(raw), cell, seed, output, overrides)

    @staticmethod
    def _folder(cell: Cell) -> str:
        """The name of a cell's runs, but for the seed."""
        return "-".join(cell.values())

    def _entry(self, raw: Setting, cell: Cell, seed: int, output: Path, overrides: dict[str, Any]) -> "Entry":
        name = f"{self._folder(cell)}-s{seed}"
        own = dict(zip(OWN_KEYS, (name, seed, str(output)), strict=True))
        for key, value in {**self.settings(cell), **overrides, **own}.items():
            set_key(raw, key, value)
        try:
            return Entry(cell, seed, parse_config(raw))
        except UserError as error:
            raise UserError(f"Study {self.name}, run {name}: {error}") from None


@dataclass(frozen=True)
class Entry:
    """One run of a study."""

    cell: Cell
    seed: int
    config: Config

    @property
    def run(self) -> Run:
        """The run's folder, config and records."""
        return Run.of(self.config)


def load_study(path: Path | str) -> Study:
    """Read a study's YAML file; UserError that lists its mistakes."""
    path = Path(path)
    raw = read_yaml(path, "study", "init table3_lastfm")
    if isinstance(raw.get("part_of"), str):
        whole = read_yaml(path.with_name(f"{raw['part_of']}.yaml"))
        raw = {key: whole[key] for key in RUNS_KEYS if key in whole} | raw
    try:
        return Study.model_validate({**raw, "path": path})
    except ValidationError as error:
        listed = "\n".join(
            f"  - {'.'.join(map(str, each['loc'])) or 'study'}: {each['msg']}" for each in error.errors()
        )
        raise UserError(f"The study {path} has mistakes:\n{listed}") from None
