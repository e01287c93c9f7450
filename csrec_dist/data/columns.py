"""Which column of a raw log is the user, the item, the rating, the timestamp and the true item."""

import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from csrec_dist.data.wording import did_you_mean, listed
from csrec_dist.errors import UserError

# Compared in lower case and without punctuation, the first that is there wins.
GUESSES = {
    "user": ("user", "userid", "uid", "reviewerid", "visitorid", "customerid", "session", "sessionid"),
    "item": ("item", "itemid", "iid", "parentasin", "asin", "businessid", "movieid", "artistid", "productid"),
    "rating": ("rating", "ratings", "stars", "overall", "score"),
    "timestamp": ("timestamp", "unixreviewtime", "time", "ts", "datetime", "date", "unixtime"),
    "true_item": ("trueitem",),
}
REQUIRED = ("user", "item")
ROLES = tuple(GUESSES)


class Columns(BaseModel):
    """Names of the log's columns; what is left out is guessed from the usual names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: str | None = Field(default=None, description="Column of the user (or session); default: guessed.")
    item: str | None = Field(default=None, description="Column of the item; default: guessed.")
    rating: str | None = Field(default=None, description="Column of the rating; default: guessed, may be absent.")
    timestamp: str | None = Field(default=None, description="Column of the time; default: guessed, may be absent.")
    true_item: str | None = Field(
        default=None,
        exclude_if=lambda name: name is None,  # so that a log without it keeps the fingerprint it has always had
        description="Column of the item the user preferred before any noise; default: guessed, may be absent.",
    )


def pick(log: pl.LazyFrame, columns: Columns, path: Path) -> pl.LazyFrame:
    """The log's columns under the names of the roles: user, item, rating, timestamp and true_item (null where absent).

    Raises UserError when a named column is missing or the user or item cannot be guessed.
    """
    chosen = choose(log.collect_schema().names(), columns, path)
    return log.select(
        pl.lit(None).alias(role) if name is None else pl.col(name).alias(role) for role, name in chosen.items()
    )


def choose(names: Sequence[str], columns: Columns, path: Path) -> dict[str, str | None]:
    """The column name of each role among `names`, None for an optional one that is not there."""
    return {role: _choose_one(role, getattr(columns, role), names, path) for role in ROLES}


def _choose_one(role: str, wanted: str | None, names: Sequence[str], path: Path) -> str | None:
    if wanted is not None:
        if wanted not in names:
            raise UserError(
                f"{path} has no column '{wanted}' (dataset.columns.{role}){did_you_mean(wanted, names)}; "
                f"its columns are {listed(names)}."
            )
        return wanted
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    found = next((plain[guess] for guess in GUESSES[role] if guess in plain), None)
    if found is None and role in REQUIRED:
        raise UserError(
            f"{path} has no column that looks like the {role}; its columns are {listed(names)}: "
            f"name one with dataset.columns.{role}."
        )
    return found
