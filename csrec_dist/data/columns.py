"""Which columns of a raw log are the user, the item, the rating, the timestamp and the true item."""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from csrec_dist.data.keep import Condition, Keep, Weights, conditions_on, weights_by
from csrec_dist.data.parts import Part
from csrec_dist.errors import UserError, did_you_mean, listed, quoted

NONE = "none"  # switches a role off
ORDER_IS_MEANT = (
    "name one with dataset.columns.timestamp, or set dataset.columns.timestamp: none if each user's rows are already "
    "in order of time"
)
USERS = (
    *("user", "userid", "uid", "reviewerid", "visitorid", "customerid", "username"),
    *("useridx", "queryid", "queryidx"),  # RePlay's
)
SESSIONS = ("session", "sessionid", "visitid")
# Compared in lower case and without punctuation; the first match wins.
GUESSES = {
    "user": (*USERS, *SESSIONS, "usersession"),  # the last splits a user's sequence, so it raises no question
    "item": (
        *("item", "itemid", "iid", "parentasin", "asin", "businessid", "movieid", "artistid", "productid"),
        *("articleid", "bookid", "isbn", "videoid", "itemidx"),
    ),
    "rating": ("rating", "ratings", "stars", "overall", "score", "bookrating", "relevance", "weight"),
    "timestamp": (
        *("timestamp", "unixreviewtime", "unixtimestamp", "unixtime", "timestampms", "timems", "eventtimestamp"),
        *("eventtime", "interactiontime", "clicktime", "showtime", "reviewtime", "utctime", "time", "ts"),
        *("datetime", "createdat", "dateadded", "tdat", "timeframe", "date"),
    ),
    "true_item": ("trueitem",),
}
REQUIRED = ("user", "item")
ROLES = tuple(GUESSES)

Column = str | int | None


class ColumnError(UserError):
    """A value of a log that cannot be read, with its role; whoever knows the file adds the line."""

    def __init__(self, path: Path, what: str, role: str, value: object) -> None:
        super().__init__(f"{path}: {what}")
        self.what, self.role, self.value = what, role, str(value)


class BadLineError(UserError):
    """A line of a log that its reader cannot take; `field` is the one to blame, where it is not the line as a whole."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnclearColumnError(UserError):
    """The names do not tell the column of `role`: `likely` are those that could be it, `names` all of the log."""

    def __init__(self, message: str, role: str, names: Sequence[str], likely: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.role, self.names, self.likely = role, list(names), list(likely)


class UnclearHeaderError(UserError):
    """The first line, whose fields are `values`, may be an interaction, and the config does not say that it is none."""

    def __init__(self, message: str, values: Sequence[str]) -> None:
        super().__init__(message)
        self.values = list(values)


def named_twice(columns: Mapping[str, str | int]) -> str:
    """The problem if two roles have the same column; "" otherwise."""
    roles: dict[str | int, str] = {}
    for role, column in columns.items():
        if column != NONE and column in roles:
            return f"{roles[column]} and {role} are both {quoted(column)}; give each its own column"
        roles[column] = role
    return ""


class Columns(BaseModel):
    """The log's columns, by name or (in a file without a header) by position; missing ones are guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: Column = Field(
        default=None,
        description="Column of the user (or session): its name or, in a file without a header, its position from 1; "
        "default: guessed from the usual names.",
    )
    item: Column = Field(default=None, description="Column of the item; default: guessed.")
    rating: Column = Field(
        default=None, description="Column of the rating; default: guessed, may be absent; none: ignored."
    )
    timestamp: Column = Field(
        default=None,
        description="Column of the time; default: guessed; none: each user's rows are already in order.",
    )
    true_item: Column = Field(
        default=None,
        exclude_if=lambda name: name is None,  # so that a log without it keeps the fingerprint it has always had
        description="Column of the item the user preferred before any noise; default: guessed, may be absent; none: "
        "ignored.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_a_name_or_a_position(cls, column: Any) -> Any:
        if column is None or (isinstance(column, str) and column) or (type(column) is int and column >= 1):
            return column
        raise ValueError("needs a column name, or a position from 1")

    @model_validator(mode="after")
    def _fit_together(self) -> "Columns":
        for role in REQUIRED:
            if getattr(self, role) == NONE:
                raise ValueError(f"{role} cannot be {NONE}: a log needs users and items")
        if twice := named_twice(self.given):
            raise ValueError(twice)
        return self

    @property
    def given(self) -> dict[str, str | int]:
        """The roles that are given, without those to be guessed."""
        return self.model_dump(exclude_none=True)

    def filled(self, usual: Mapping[str, str | int]) -> "Columns":
        """These columns, completed by those of a known format for the roles that are not given."""
        taken = set(self.given.values()) - {NONE}
        free = {role: column for role, column in usual.items() if column not in taken}
        return Columns(**{**free, **self.given})

    @property
    def positions(self) -> dict[str, int]:
        """The roles that are given by position."""
        return {role: column for role, column in self.given.items() if isinstance(column, int)}


@dataclass(frozen=True)
class Layout:
    """What the config says about the format of a log."""

    columns: Columns = field(default_factory=Columns)
    header: bool | None = None  # None: detected from the first line
    encoding: str | None = None  # None: UTF-8
    separator: str | None = None  # None: detected from the first line
    keep: Keep = field(default_factory=dict)  # columns, and what rows need in them
    weights: Weights = field(default_factory=dict)  # columns, and how much rows with a value in them weigh
    skips_bad_rows: bool = False  # whether rows that cannot be read are left out, and counted
    max_unpacked_gib: float | None = None  # that compressed files may expand to; None: what this machine has room for

    def columns_used(self, names: Sequence[str], taken: Mapping[str, str | None], path: Path) -> set[str]:
        """The columns of a file that its rows are read from, or chosen and weighed by."""
        roles = {name for name in taken.values() if name is not None}
        others = conditions_on(self.keep, names, taken, path), weights_by(self.weights, names, taken, path)
        return roles.union(*others)

    @property
    def is_of_delimited_text(self) -> bool:
        """Whether it says what only delimited text has."""
        return any(value is not None for value in (self.header, self.encoding, self.separator))

    def filled(self, usual: Mapping[str, str | int]) -> "Layout":
        """The same, with the columns of a known format for the roles that are not given."""
        return replace(self, columns=self.columns.filled(usual))


FindLines = Callable[[str, str], Iterator[int]]
"""The lines of a file, from 1, in which a column has a value."""


@dataclass(frozen=True)
class Scan:
    """A log to be read: one row per interaction, columns named after their roles, null where a role is absent.

    `taken` has the file's column of each role, or None. `passed_over` are other columns whose names match a role.
    `typed`: the log gives its values types, so that an id that is text stays text, even if it looks like a number.
    `every_row` has the rows that `dataset.keep` leaves out too, with the columns of the file; `is_kept` says which it
    keeps, by the `conditions` on these columns. `lines_of` finds a value in the file, for messages.
    """

    frame: pl.LazyFrame
    taken: dict[str, str | None]
    every_row: pl.LazyFrame
    is_kept: pl.Expr | None = None
    passed_over: tuple[str, ...] = ()
    typed: bool = False
    lines_of: FindLines | None = None
    conditions: Mapping[str, Condition] = field(default_factory=dict)

    def num_not_kept(self) -> int:
        """How many rows `dataset.keep` leaves out: a pass over the file."""
        if self.is_kept is None:
            return 0
        return int(self.every_row.select((~self.is_kept).sum()).collect(engine="streaming").item())

    def no_numbers(self) -> Iterator[tuple[str, pl.Series]]:
        """The columns that `dataset.keep` compares with a number, each with its values that are none, as text.

        A row that has several of them counts in the first of these columns.
        """
        rows = self.every_row
        for name, condition in self.conditions.items():
            if condition.is_numeric:
                column = pl.col(name).cast(pl.String)
                wrong = condition.no_number(column)
                yield name, rows.filter(wrong).select(column).collect(engine="streaming")[name]
                rows = rows.filter(~wrong)


def pick(
    log: pl.LazyFrame,
    layout: Layout,
    part: Part,
    *,
    hint: str = "",
    typed: bool = False,
    lines_of: FindLines | None = None,
) -> Scan:
    """The log's columns named after their roles: user, item, rating, timestamp and true_item (null where absent).

    Raises UserError, with the hint at its end, if a column is missing or cannot be guessed.
    """
    names = log.collect_schema().names()
    log = log.with_columns(pl.lit(value).alias(name) for name, value in part.partition.items() if name not in names)
    names = log.collect_schema().names()
    taken = choose(names, layout.columns, part.path, hint)
    return scan_of(log, taken, names, layout, part.path, typed=typed, lines_of=lines_of)


def scan_of(
    log: pl.LazyFrame,
    taken: dict[str, str | None],
    names: Sequence[str],
    layout: Layout,
    path: Path,
    *,
    typed: bool = False,
    lines_of: FindLines | None = None,
) -> Scan:
    """The chosen columns of the rows that are kept, named after their roles, and their `weight` where it is given."""
    conditions = conditions_on(layout.keep, names, taken, path)
    holding = [each.holds(pl.col(name), not layout.skips_bad_rows) for name, each in conditions.items()]
    is_kept = pl.all_horizontal(holding) if holding else None
    rows = log if is_kept is None else log.filter(is_kept)
    columns = [pl.lit(None).alias(role) if name is None else pl.col(name).alias(role) for role, name in taken.items()]
    if layout.weights:
        factors = weights_by(layout.weights, names, taken, path).values()
        columns.append(reduce(operator.mul, factors).alias("weight"))
    frame = rows.select(columns)
    usual = {name for role in ROLES for name in guesses(role, names)} - set(taken.values())
    passed_over = tuple(name for name in names if name in usual)
    return Scan(frame, taken, log, is_kept, passed_over, typed, lines_of, conditions)


def choose(names: Sequence[str], columns: Columns, path: Path, hint: str = "") -> dict[str, str | None]:
    """The column of each role among `names`, None for an optional role without one.

    Raises UserError if a role cannot be determined, or if there are no times and the config does not say `none`.
    """
    given = {role: _given(role, column, names, path) for role, column in columns.given.items() if column != NONE}
    if twice := named_twice(given):
        raise UserError(f"{path}: dataset.columns: {twice}.")
    free = [name for name in names if name not in given.values()]
    chosen: dict[str, str | None] = {}
    for role in ROLES:
        left_out = getattr(columns, role) == NONE
        chosen[role] = None if left_out else given.get(role) or _guess(role, free, path)
        if chosen[role] is None and role in REQUIRED:
            raise UnclearColumnError(
                f"{path} has no column that looks like the {role}; its columns are {listed(names)}: "
                f"name one with dataset.columns.{role}{hint}.",
                role,
                free,
            )
    if chosen["timestamp"] is None and columns.timestamp != NONE:
        raise UnclearColumnError(
            f"{path} has no column that looks like the time; its columns are {listed(names)}: {ORDER_IS_MEANT}.",
            "timestamp",
            [name for name in free if name not in chosen.values()],
        )
    refuse_twice(names, chosen, path)
    return chosen


def refuse_twice(names: Sequence[str], taken: Mapping[str, str | None], path: Path) -> None:
    """UserError if the column of a role shares its name with another one: which of them is meant, nobody can tell."""
    for role, name in taken.items():
        if name is not None and names.count(name) > 1:
            raise UserError(
                f"{path} has {names.count(name)} columns {quoted(name)}, which could each be the {role}; give them "
                "different names, or name another column in dataset.columns."
            )


def guesses(role: str, names: Sequence[str]) -> list[str]:
    """The columns with one of the role's usual names, the likeliest first."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    return [plain[guess] for guess in GUESSES[role] if guess in plain]


def _given(role: str, column: str | int, names: Sequence[str], path: Path) -> str:
    if isinstance(column, str) and column not in names:
        raise UserError(
            f"{path} has no column {quoted(column)} (dataset.columns.{role}){did_you_mean(column, names)}; "
            f"its columns are {listed(names)}."
        )
    if isinstance(column, int) and column > len(names):
        raise UserError(f"{path} has {len(names)} columns, so there is no column {column} (dataset.columns.{role}).")
    return column if isinstance(column, str) else names[column - 1]


def _guess(role: str, names: Sequence[str], path: Path) -> str | None:
    likely = guesses(role, names)
    if role == "user":
        users, sessions = ([name for name in likely if _is_one_of(name, kind)] for kind in (USERS, SESSIONS))
        if users and sessions:
            raise UnclearColumnError(
                f"{path} has users ({quoted(users[0])}) and sessions ({quoted(sessions[0])}). Choose whose items make "
                f"a sequence with dataset.columns.user: {users[0]} or dataset.columns.user: {sessions[0]}.",
                "user",
                names,
                [users[0], sessions[0]],
            )
    return likely[0] if likely else None


def _is_one_of(name: str, kind: tuple[str, ...]) -> bool:
    return re.sub(r"[^a-z0-9]", "", name.lower()) in kind
