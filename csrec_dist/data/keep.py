"""Which rows of a log are read, and how much each weighs: `dataset.keep` and `dataset.weights`, by its columns.

A condition is a value, several values of which a row has one, or a text that compares: ">= 4", "!= view".
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from csrec_dist.errors import UserError, did_you_mean, listed, quoted

Value = bool | int | float | str
Keep = Mapping[str, Value | tuple[Value, ...]]
"""What rows need in a column, which is named by its name, its role, or (as digits) its position without a header."""
Weights = Mapping[str, Mapping[str, float]]
"""Of a column's values those that weigh other than 1, as text; a row's weight is the product over the columns."""

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
COMPARISON = re.compile(r"\s*(>=|<=|!=|>|<|=)\s*(.*?)\s*", re.DOTALL)
EXACT_IN_FLOATS = 2**53


@dataclass(frozen=True)
class Condition:
    """What a row needs in one column: one of some values, or (with a comparison) a relation to one of them."""

    values: tuple[Value, ...]
    comparison: str = ""

    @property
    def is_numeric(self) -> bool:
        """Whether values are compared with a number by size, which all of them need to be, then."""
        return self.comparison not in ("", "=", "!=") and isinstance(self.values[0], int | float)

    def holds(self, column: pl.Expr, strict: bool = True) -> pl.Expr:
        """Whether it holds for a column's values, of any type; never for a missing one or NaN, unless it says `!=`.

        With `strict`, a value that is no number is an error where it is compared with one, and no row less.
        """
        text = column.cast(pl.String).str.strip_chars()
        if self.is_numeric:
            number = pl.when(text != "").then(text).cast(pl.Float64, strict=strict).fill_nan(None)
            return COMPARISONS[self.comparison](number, self.values[0]).fill_null(False)
        if self.comparison in ("", "="):
            return self._is_one(text)
        if self.comparison == "!=":
            return ~self._is_one(text)
        return COMPARISONS[self.comparison](text, str(self.values[0])).fill_null(False)

    def no_number(self, column: pl.Expr) -> pl.Expr:
        """Where a value that is compared with a number is none."""
        text = column.cast(pl.String).str.strip_chars()
        return ((text != "") & text.cast(pl.Float64, strict=False).is_null()).fill_null(False)

    def _is_one(self, text: pl.Expr) -> pl.Expr:
        texts = [spelling for value in self.values for spelling in _spellings(value)]
        numbers = [float(value) for value in self.values if not isinstance(value, str) and abs(value) < EXACT_IN_FLOATS]
        is_one = text.is_in(texts)
        if numbers:
            is_one |= text.cast(pl.Float64, strict=False).is_in(numbers).fill_null(False)
        return is_one.fill_null(False)


def condition(wanted: Any) -> Condition:
    """The condition that a config states. Raises ValueError for one that cannot be meant."""
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        if not wanted:
            raise ValueError("an empty list keeps nothing")
        if compared := [value for value in wanted if isinstance(value, str) and _operator(value)]:
            raise ValueError(f"{quoted(compared[0])} stands in a list; a list has values, of which a row has one")
        return Condition(tuple(wanted))
    if not isinstance(wanted, str) or not (comparison := _operator(wanted)):
        return Condition((wanted,))
    match = COMPARISON.fullmatch(wanted)
    assert match is not None
    if not match[2]:
        raise ValueError(f"{quoted(wanted)} compares with nothing; write something like '>= 4'")
    value = _number(match[2])
    exactly = comparison in ("=", "!=") and value != match[2]
    return Condition((match[2], value) if exactly else (value,), comparison)


def conditions_on(
    keep: Keep, names: Sequence[str], taken: Mapping[str, str | None], path: Path
) -> dict[str, Condition]:
    """The condition of each column of the file that has one. Raises UserError for a column that is not there."""
    return {_column(key, names, taken, path, "keep"): condition(wanted) for key, wanted in keep.items()}


def weights_by(
    weights: Weights, names: Sequence[str], taken: Mapping[str, str | None], path: Path
) -> dict[str, pl.Expr]:
    """The weights that each column gives to the rows. Raises UserError for a column that is not there."""
    factors = {}
    for key, by_value in weights.items():
        name = _column(key, names, taken, path, "weights")
        factor = pl.lit(1.0)
        for value, weight in by_value.items():
            is_value = Condition((value, _typed(value))).holds(pl.col(name))
            factor = pl.when(is_value).then(pl.lit(float(weight))).otherwise(factor)
        factors[name] = factor.cast(pl.Float32)
    return factors


def _column(key: str, names: Sequence[str], taken: Mapping[str, str | None], path: Path, section: str) -> str:
    """The column of the file that a key means: its name, its role or its position."""
    name = key if key in names else taken.get(key)
    if name is None and f"column {key}" in names:
        name = f"column {key}"
    if name is None:
        raise UserError(
            f"{path} has no column {quoted(key)} (dataset.{section}){did_you_mean(key, names)}; its columns are "
            f"{listed(names)}."
        )
    return name


def _operator(text: str) -> str:
    match = COMPARISON.fullmatch(text)
    return match[1] if match else ""


def _number(text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        return text


def _typed(text: str) -> Value:
    """What YAML would read: keys of mappings are text."""
    return text.lower() == "true" if text.lower() in ("true", "false") else _number(text)


def _spellings(value: Value) -> list[str]:
    """How files write a value."""
    word = str(value)
    return [word, word.lower(), word.upper()] if isinstance(value, bool) else [word]
