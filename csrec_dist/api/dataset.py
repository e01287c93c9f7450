"""A prepared dataset as Python code makes it: from a table or a file, by keyword arguments, also in a notebook."""

import html
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from csrec_dist.config import parse_section
from csrec_dist.data import BAD_ROWS
from csrec_dist.data import dataset as prepared
from csrec_dist.data.append import appended_options
from csrec_dist.data.card import dataset_card
from csrec_dist.data.columns import NONE, ROLES
from csrec_dist.data.dataset import LOG, without_places
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare_once
from csrec_dist.distributed.joining import processes
from csrec_dist.errors import UserError
from csrec_dist.files import write_record
from csrec_dist.hub import upload_with_card
from csrec_dist.training.telemetry import StageLog

OF_FILES = ("source", "path", "format", "header", "encoding", "separator", "valid_source", "test_source")
"""Options of text files, which a table has no use for."""
ARGUMENT = rf"(?<![\w/.-])dataset\.(?:columns\.)?({'|'.join([*ROLES, *DatasetOptions.model_fields])})\b"
"""A key of a config that is an argument of `Dataset.prepare`."""


class Dataset(prepared.Dataset):
    """A prepared dataset: `Dataset.prepare` makes one from a log, `Dataset(folder)` opens it again.

    `num_items`, `num_users`, `window`, `splits` and `statistics` say what is in it; `stream` reads its rows.
    """

    @classmethod
    def prepare(
        cls,
        log: Any,
        folder: Path | str,
        *,
        user: str | int | None = None,
        item: str | int | None = None,
        rating: str | int | None = None,
        timestamp: str | int | None = None,
        true_item: str | int | None = None,
        **options: Any,
    ) -> Self:
        """Prepare a log into a new folder, or open the folder if it was prepared from this log with these options.

        What was read, which columns were taken and what was left out is printed. Ids keep their type: text that looks
        like a number stays text, unless it comes from a text file. Under a launcher the first rank prepares.

        Args:
            log: a table of pandas, polars, pyarrow or Hugging Face Datasets with a row for each interaction; or the
                path of a file or folder, or the name of a fetched log.
            folder: a new folder.
            user, item, rating, timestamp, true_item: names of columns, guessed where they are not given (those of
                RecTools, RePlay and RecBole are among the usual ones). "none" switches a role off; without timestamps
                the order of each user's rows is that in time.
            options: other keys of `dataset` in docs/configuration.md, such as window, min_interactions, split.

        Raises:
            UserError: an option or column is wrong (all are named), nothing is left of the log, or the folder has
                something else in it.

        >>> import polars as pl
        >>> log = pl.DataFrame({
        ...     "customer": [f"c{row // 6}" for row in range(60)],
        ...     "sku": [f"sku{row % 7}" for row in range(60)],
        ...     "time": range(60),
        ... })
        >>> data = Dataset.prepare(log, "data/sales", user="customer", item="sku", window=5)  # doctest: +ELLIPSIS
        prepare read the polars DataFrame: user: customer, item: sku, rating: none, timestamp: time, true_item: none
        ...
        >>> data
        Dataset(data/sales: 10 users, 7 items, windows of 5)
        """
        columns = _columns(user=user, item=item, rating=rating, timestamp=timestamp, true_item=true_item)
        with _named_as_arguments(), processes() as ranks:
            settings, table = _settings(log, columns, options)
            ranks.on_main(lambda: _prepare_once(settings, Path(folder), table))
        return cls(folder)

    def append(self, log: Any, folder: Path | str, **options: Any) -> Self:
        """Prepare this dataset's log together with a new one into a new folder; this dataset stays as it is.

        Items and users keep their numbers, and new ones follow, also those that had too few interactions before. But
        for the numbers it is as if the whole log had been prepared at once. A folder that was made of this dataset and
        this log is opened. Under a launcher the first rank prepares.

        Args:
            log, folder: as for `prepare`.
            options: as for `prepare`, user, item, rating, timestamp and true_item among them, which name columns of the
                new log; those of this dataset by default.

        Raises:
            UserError: as `prepare`; the folder of this dataset has its log no more; or an option would leave out
                items or users that it has.

        >>> import pandas as pd
        >>> november = pd.DataFrame({"customer": ["c1", "c99"] * 3, "sku": ["sku1", "sku77"] * 3})
        >>> november["event_time"] = pd.date_range("2026-11-01", periods=6)
        >>> data.append(november, "data/shop_november")  # doctest: +ELLIPSIS
        prepare read the pandas DataFrame, appended to the log of data/shop: ...
        prepare new users: 1, new items: 1
        ...
        Dataset(data/shop_november: 21 users, 8 items, windows of 6)
        """
        columns = (options.pop("columns", None) or {}) | _columns(**{role: options.pop(role, None) for role in ROLES})
        with _named_as_arguments(), processes() as ranks:
            keys = appended_options(self, options | {"columns": columns}, is_table=not isinstance(log, str | Path))
            settings, table = _settings(log, {}, keys, "append")
            ranks.on_main(lambda: _prepare_once(settings, Path(folder), table, self))
        return type(self)(folder)

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None) -> str:
        """Put the dataset with a card into the repository `name` (OWNER/NAME) of the Hub; returns its address.

        `datasets.load_dataset(name)` reads the splits there. The raw ids of users and all their items go with it; the
        log that it was made of, rows that were left out of it, and places on this machine do not. Under a launcher the
        first rank pushes.

        Raises:
            UserError: the name is no name, the server cannot be reached, or it asks for another token.
        """

        def push() -> str:
            files = [self.file(name) for name in self.file_names if name not in (LOG, BAD_ROWS)]
            with TemporaryDirectory() as folder:
                write_record(info := Path(folder) / "dataset.json", without_places(self.info))
                return upload_with_card([info, *files], dataset_card(self), name, private, token)

        with processes() as ranks:
            return ranks.on_main(push)

    def __repr__(self) -> str:
        return f"Dataset({self.folder}: {self.num_users:,} users, {self.num_items:,} items, windows of {self.window})"

    def _repr_html_(self) -> str:
        rows = [(name, f"{split.num_rows:,}", f"{split.num_examples:,}") for name, split in self.splits.items()]
        return html_table(repr(self), ("split", "rows", "examples"), rows)


def _columns(**columns: str | int | None) -> dict[str, str | int]:
    """The columns that are named, by their roles; the others are guessed."""
    return {role: name for role, name in columns.items() if name is not None}


def _settings(
    log: Any, columns: dict[str, str | int], options: dict[str, Any], method: str = "prepare"
) -> tuple[DatasetOptions, Any]:
    """The options of a log, and the log itself if it is a table.

    `method` is the one whose arguments they are, for the errors' opening words.
    """
    columns = {**(options.pop("columns", None) or {}), **columns}
    if log is None:
        raise UserError("The log is None: give a table, or the path of a file.")
    opening = f"The call of Dataset.{method} has"
    if isinstance(log, str | Path):
        return parse_section(DatasetOptions, {**options, "source": str(log), "columns": columns}, opening), None
    if wrong := [name for name in OF_FILES if options.get(name) is not None]:
        raise UserError(f"{', '.join(wrong)}: this is for files, and a table was given; leave it out.")
    names = {role: name if name == NONE else str(name) for role, name in columns.items()}  # pandas allows integers
    source = f"{type(log).__module__.partition('.')[0]}.{type(log).__name__}"
    return parse_section(DatasetOptions, {**options, "source": source, "columns": names}, opening), log


def _prepare_once(options: DatasetOptions, folder: Path, table: Any, extends: prepared.Dataset | None = None) -> None:
    """Prepare unless the folder has it: a notebook's cell is run again, and a script resumes."""
    with StageLog("prepare", None, show=True) as log:
        prepare_once(options, folder, lambda line: log.say(_in_python(line)), table, extends)


@contextmanager
def _named_as_arguments() -> Iterator[None]:
    """Errors of the block name Python's arguments instead of the config's keys."""
    try:
        yield
    except UserError as error:
        raise UserError(_in_python(str(error))) from None


def _in_python(text: str) -> str:
    """The keys of a config in a text as arguments: dataset.columns.user is user, `dataset.header: true` header=True."""

    def assignment(key_and_value: re.Match[str]) -> str:
        name, value = key_and_value.groups()
        return f"{name}={value.capitalize() if value in ('true', 'false') else repr(value)}"

    text = re.sub(rf"{ARGUMENT}(?<!columns): (\w+)", assignment, text)
    return re.sub(ARGUMENT, r"the argument \1", text)


def html_table(title: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A titled table as Jupyter shows it."""

    def line(tag: str, cells: Iterable[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    lines = [line("th", header), *(line("td", row) for row in rows)]
    return f"<table><caption>{html.escape(title)}</caption>{''.join(lines)}</table>"
