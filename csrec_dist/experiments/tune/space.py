"""The space of a search: keys of the config and the values that each may take, checked before any work."""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import StrictFloat, StrictInt, field_validator, model_validator

from csrec_dist.config import mistakes, parse_section, read_yaml, schema_mistakes, set_key
from csrec_dist.errors import UserError, quoted
from csrec_dist.options import Decides, Options
from csrec_dist.runs.inputs import MARKS

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SEEDS = ("seed", "teachers.seed")
MEASURED = {"prepare", "evaluate"}
"""Stages that decide on which rows a trial is validated, and how."""
MOST_COMBINATIONS = 10_000
"""Spaces with more combinations count as infinite: that one of them is drawn twice is unlikely."""
DIGITS = 4
"""Significant digits of a number that is drawn from a range: a config is read by people."""
Raw = dict[str, Any]


class Range(Options):
    """The numbers from `low` to `high`, both included: whole ones where `low`, `high` and `step` are whole.

    Where a key takes other numbers, too, `of_any_number` makes another range of it.
    """

    low: StrictInt | StrictFloat
    high: StrictInt | StrictFloat
    log: bool = False
    step: StrictInt | StrictFloat | None = None

    @field_validator("low", "high", "step", mode="before")
    @classmethod
    def _as_number(cls, value: Any) -> Any:
        """YAML takes 1e-4 for a text; it wants 1.0e-4."""
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}, but low must be less")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, not {self.low}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other: give one of them, or a list of values")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step must be above 0 and at most high - low, not {self.step}")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether all its values are whole numbers."""
        return all(isinstance(each, int) for each in (self.low, self.high, self.step or 1))

    @property
    def of_any_number(self) -> "Range":
        """The same, with what lies between whole numbers unless there is a step."""
        return (
            self
            if self.step is not None
            else self.model_copy(update={"low": float(self.low), "high": float(self.high)})
        )

    @property
    def values(self) -> list[int | float] | None:
        """All values; None where there are infinitely many."""
        step = 1 if self.is_whole and self.step is None else self.step
        if step is None:
            return None
        num_steps = int((self.high - self.low) / step + 1e-9)
        if num_steps >= MOST_COMBINATIONS:
            return None
        return [self.rounded(self.low + number * step) for number in range(num_steps + 1)]

    def rounded(self, value: int | float) -> int | float:
        """A number of the range as it goes into a config: of a step without what sums leave (0.1 + 2 · 0.1 is 0.3)."""
        if self.is_whole:
            return int(value)
        digits = DIGITS if self.step is None else 12
        return min(max(float(f"{value:.{digits}g}"), float(self.low)), float(self.high))


@dataclass(frozen=True)
class Space:
    """What is searched: by key of the config a list of values or a range. It is not empty."""

    dimensions: dict[str, list[Any] | Range]

    def distributions(self) -> "dict[str, BaseDistribution]":
        """The space for Optuna, which knows the values of lists by their texts."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        by_key: dict[str, BaseDistribution] = {}
        for key, each in self.dimensions.items():
            if isinstance(each, list):
                by_key[key] = CategoricalDistribution([text(value) for value in each])
            elif each.is_whole:
                low, step = int(each.low), 1 if each.step is None else int(each.step)
                num_steps = (int(each.high) - low) // step
                by_key[key] = IntDistribution(low, low + num_steps * step, log=each.log, step=step)
            else:
                last = each.high if each.values is None else each.values[-1]
                by_key[key] = FloatDistribution(each.low, last, log=each.log, step=each.step)
        return by_key

    def values(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The values by key, as they go into the config, of what Optuna proposes."""
        by_key: dict[str, Any] = {}
        for key, each in self.dimensions.items():
            if isinstance(each, list):
                by_key[key] = next(value for value in each if text(value) == parameters[key])
            else:
                by_key[key] = each.rounded(parameters[key])
        return by_key

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The opposite of `values`."""
        lists = {key for key, each in self.dimensions.items() if isinstance(each, list)}
        return {key: text(value) if key in lists else value for key, value in values.items()}

    @cached_property
    def combinations(self) -> list[dict[str, Any]] | None:
        """All combinations of values in the order of the keys; None where they are infinite or very many."""
        lists = [each if isinstance(each, list) else each.values for each in self.dimensions.values()]
        finite = [values for values in lists if values is not None]
        if len(finite) < len(lists) or prod(map(len, finite)) > MOST_COMBINATIONS:
            return None
        return [dict(zip(self.dimensions, each, strict=True)) for each in product(*finite)]

    def dump(self) -> Raw:
        """The space as plain values."""
        return {
            key: each if isinstance(each, list) else each.model_dump(exclude_defaults=True)
            for key, each in self.dimensions.items()
        }


def text(value: Any) -> str:
    """A value as tables and figures show it: JSON, but texts without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def shown(values: Mapping[str, Any]) -> str:
    """Values by key, in a line."""
    return ", ".join(f"{key}={text(value)}" for key, value in values.items())


def read_space(space: Path | str | Mapping[str, Any], raw: Raw) -> Space:
    """The space of a YAML file or a mapping, for runs of the config with these plain values.

    Raises:
        UserError: keys or values are wrong; all mistakes are named, with the nearest right names.
    """
    opening = f"The space {space}" if isinstance(space, str | Path) else "The space"
    given = read_yaml(space, "space", "init demo_space") if isinstance(space, str | Path) else space
    if not given:
        raise UserError(f"{opening} is empty; give at least one key, such as training.beta: [0.25, 0.5, 0.75].")
    dimensions: dict[str, list[Any] | Range] = {}
    problems = []
    for key, value in given.items():
        wrong, dimension = _dimension(str(key), value, raw)
        problems += wrong
        problems += [
            f"{key} would undo {other}: give one of them." for other in given if str(other).startswith(f"{key}.")
        ]
        if dimension is not None:
            dimensions[str(key)] = dimension
    if problems:
        raise mistakes(f"{opening} has", problems)
    return Space(dimensions)


def _dimension(key: str, value: Any, raw: Raw) -> tuple[list[str], list[Any] | Range | None]:
    """What is wrong with a key and its values, or else these."""
    try:
        dimension = _parsed(key, value)
    except UserError as error:
        return [str(error)], None
    probes: Sequence[Any] = dimension if isinstance(dimension, list) else [dimension.low, dimension.high]
    wrong = dict.fromkeys(problem for probe in probes for problem in _refused(raw, key, probe))
    if isinstance(dimension, Range) and not wrong and not _refused(raw, key, dimension.low + 0.5):
        dimension = dimension.of_any_number
    return list(wrong) or _unsearchable(key), dimension


def _parsed(key: str, value: Any) -> list[Any] | Range:
    if isinstance(value, list):
        if not value:
            raise UserError(f"{key}: an empty list; give at least one value.")
        if twice := [each for each in value if [text(other) for other in value].count(text(each)) > 1]:
            raise UserError(f"{key}: {quoted(twice[0])} stands there twice; give it once.")
        return value
    if not isinstance(value, Mapping):
        raise UserError(f"{key}: give a list of values or {{low: …, high: …}}, not {quoted(value)}.")
    if not value.keys() & Range.model_fields.keys():
        raise UserError(f"{key}: name the keys of a section with a dot, such as {key}.{next(iter(value), 'key')}.")
    try:
        return parse_section(Range, value, "")
    except UserError as error:  # a line for each mistake, under its own head; "config" is the whole range
        lines = [line.removeprefix("  - ").removeprefix("config: ") for line in str(error).splitlines()[1:]]
        raise UserError(f"{key}: {' '.join(lines)}") from None


def _refused(raw: Raw, key: str, value: Any) -> list[str]:
    """What the schema has against this value of the key."""
    changed = deepcopy(raw)
    try:
        set_key(changed, key, value)
    except UserError as error:
        return [str(error)]
    return schema_mistakes(changed)


def _unsearchable(key: str) -> list[str]:
    """Why a key of the config cannot be searched, if so."""
    stages = {stage for mark in _marks(key) for stage in mark.stages}
    if key in SEEDS:
        return [f"{key}: a search would choose the luckiest seed; set it in the config."]
    if not stages:
        return [f"{key}: it decides no result, so there is nothing to find; set it in the config."]
    if stages & MEASURED:
        return [f"{key}: it decides what trials are measured by, which must be the same in all; set it in the config."]
    return []


def _marks(key: str) -> Iterator[Decides]:
    """The marks of a key, of the model that it is an option of, or of all keys in the section that it names."""
    path = tuple(key.split("."))
    for place, marks in MARKS.items():
        if place == path[: len(place)] or path == place[: len(path)]:
            yield from marks
