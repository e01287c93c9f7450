"""Which columns of a raw log are the user, the item, the rating, the timestamp and the true item."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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


@dataclass(frozen=True)
class Scan:
    """A log to be read: one row per interaction, columns named after their roles, null where a role is absent.

    `taken` has the file's column of each role, or None. `passed_over` are other columns whose names match a role.
    `typed`: the log gives its values types, so that an id that is text stays text, even if it looks like a number.
    """

    frame: pl.LazyFrame
    taken: dict[str, str | None]
    passed_over: tuple[str, ...] = ()
    typed: bool = False


def pick(log: pl.LazyFrame, columns: Columns, path: Path, hint: str = "", typed: bool = False) -> Scan:
    """The log's columns named after their roles: user, item, rating, timestamp and true_item (null where absent).

    Raises UserError, with the hint at its end, if a column is missing or cannot be guessed.
    """
    names = log.collect_schema().names()
    return scan_of(log, choose(names, columns, path, hint), names, typed)


def scan_of(log: pl.LazyFrame, taken: dict[str, str | None], names: Sequence[str], typed: bool = False) -> Scan:
    """The chosen columns, named after their roles."""
    frame = log.select(
        pl.lit(None).alias(role) if name is None else pl.col(name).alias(role) for role, name in taken.items()
    )
    usual = {name for role in ROLES for name in guesses(role, names)} - set(taken.values())
    return Scan(frame, taken, tuple(name for name in names if name in usual), typed)


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
    return chosen


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
