"""Rows of a log that cannot be read: what `dataset.on_bad_rows: skip` leaves out, counted, and the first ten of them.

With `error`, the default, the first of them is an error with its file, line and value.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import polars as pl

from csrec_dist.data import BAD_ROWS
from csrec_dist.data.columns import Scan
from csrec_dist.errors import shortened

MOST_KEPT = 10
LONGEST_VALUE = 500


class BadRow(NamedTuple):
    """A row that was left out: the name of its file, its line from 1 (None in a table), what could not be read."""

    file: str
    line: int | None
    problem: str
    value: str


Find = Callable[[str, str], Iterator[tuple[Path, int]]]
"""The files and lines that have a value in the column of a role, in their order."""


class BadRows:
    """The rows of one log that were left out: how many by what was wrong, and the first ten.

    What is wrong is a `line` that is none of the log's (too many fields, an open quote, no JSON object, not UTF-8), or
    the value of a column: `timestamp`, `rating`, or one that `dataset.keep` compares with a number.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        """`counts` of rows that were left out before."""
        self.counts: Counter[str] = Counter(counts)
        self.first: list[BadRow] = []

    @classmethod
    def joined(cls, several: Iterable["BadRows"]) -> Self:
        """Those of several files, or of several steps of reading one log."""
        joined = cls()
        for each in several:
            joined.counts += each.counts
            joined.first = [*joined.first, *each.first][:MOST_KEPT]
        return joined

    def add_line(self, path: Path, line: int, problem: str, text: str) -> None:
        """Count a line."""
        self.counts["line"] += 1
        self._keep(BadRow(path.name, line, problem, text))

    def add_values(self, column: str, values: pl.Series, problem: str, place: Path, find: Find) -> None:
        """Count rows by their values in a column, given in their order; `place` stands for a table."""
        self.counts[column] += len(values)
        lines_of_value: dict[str, Iterator[tuple[Path, int]]] = {}
        for value in values.head(MOST_KEPT - len(self.first)):
            text = str(value)
            # A value that several rows have is looked for once, and each row takes the next of its lines.
            path, line = next(lines_of_value.setdefault(text, find(column, text)), (place, None))
            self._keep(BadRow(path.name, line, problem, text))

    def add_no_numbers(self, scan: Scan, place: Path, find: Find) -> int:
        """Count the rows with a value that `dataset.keep` compares with a number and that is none; how many they are.

        `place` and `find` are as for `add_values`.
        """
        before = len(self)
        for name, values in scan.no_numbers():
            self.add_values(name, values, "it is no number, with which dataset.keep compares it", place, find)
        return len(self) - before

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        """The counts, for people."""
        return ", ".join(f"{num:,} by their {column}" for column, num in self.counts.items())

    def write(self, folder: Path) -> None:
        """Write the first ten into a folder, if there are any."""
        if self.first:
            lines = [json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in self.first]
            (folder / BAD_ROWS).write_text("".join(lines), encoding="utf-8", errors="backslashreplace")

    def _keep(self, row: BadRow) -> None:
        if len(self.first) < MOST_KEPT:
            self.first.append(row._replace(value=shortened(row.value, LONGEST_VALUE)))
