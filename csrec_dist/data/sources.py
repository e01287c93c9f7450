"""Where the interactions of a raw log come from: files with a reader, or a table in memory; how each is identified."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from csrec_dist.data.download import downloads_folder, resolve
from csrec_dist.data.log import Log, log_files, read_log
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.readers import detect
from csrec_dist.data.tables import digest, kind_of, read_table
from csrec_dist.files import sha256_file


class Source(Protocol):
    """A raw log that is read once, when it is first asked for. Its text says where it was read from."""

    @property
    def place(self) -> Path:
        """What messages call the log."""

    @property
    def log(self) -> Log:
        """The interactions."""

    @property
    def identity(self) -> dict[str, Any]:
        """Its name, format, bytes and sha256."""


class FileSource:
    """The files of a log and the name of their reader."""

    def __init__(self, options: DatasetOptions) -> None:
        """Find the files of `options.source`; UserError if they are missing, or no reader knows them."""
        assert options.source is not None, "a dataset given by its path is not prepared again"
        self.files = log_files(resolve(options.source, downloads_folder()))
        self.format = options.format or detect(self.files[0], options.layout)
        self._name, self._layout = options.source, options.layout

    def __str__(self) -> str:
        parts = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.place}{parts} as {self.format}"

    @property
    def place(self) -> Path:
        """The first file."""
        return self.files[0]

    @cached_property
    def log(self) -> Log:
        """The interactions."""
        return read_log(self.files, self.format, self._layout)

    @property
    def identity(self) -> dict[str, Any]:
        """What the files are, without reading their interactions."""
        digests = [sha256_file(file) for file in self.files]
        return {
            "name": self._name if len(self.files) > 1 else self.place.name,
            "format": self.format,
            "bytes": sum(file.stat().st_size for file in self.files),
            "sha256": digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
        }


class TableSource:
    """A table of pandas, polars, pyarrow or Hugging Face Datasets."""

    def __init__(self, table: Any, options: DatasetOptions) -> None:
        """UserError if it is not a table of a known library."""
        self._table, self._columns, self._title = table, options.columns, kind_of(table).title

    def __str__(self) -> str:
        return str(self.place)

    @property
    def place(self) -> Path:
        """The kind of table, which stands in for a path."""
        return Path(f"the {self._title}")

    @cached_property
    def log(self) -> Log:
        """The interactions."""
        return read_table(self._table, self._columns, self.place)

    @property
    def identity(self) -> dict[str, Any]:
        """What the table holds, whichever library holds it."""
        size = int(self.log.frame.estimated_size())
        return {"name": self._title, "format": "table", "bytes": size, "sha256": digest(self.log)}


def source_of(options: DatasetOptions, table: Any = None) -> Source:
    """The table, or the files that the options name if there is none."""
    return FileSource(options) if table is None else TableSource(table, options)
