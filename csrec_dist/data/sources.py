"""Where the interactions of a raw log come from: files with a reader, or a table in memory; how each is identified."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from csrec_dist.data.compressed import on_disk
from csrec_dist.data.download import downloads_folder, resolve
from csrec_dist.data.log import Log
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.parts import log_files, partition_of
from csrec_dist.data.readers import detect
from csrec_dist.data.reading import Files, read_splits
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
    """The files of a log, or of the three splits of one, and the names of their readers."""

    def __init__(self, options: DatasetOptions) -> None:
        """Find the files of `options.source`; UserError if they are missing, or no reader knows them."""
        self._splits = [
            Files(tuple(paths), options.format or detect(paths[0], options.layout)) for paths in log_paths(options)
        ]
        self._name, self._layout = options.source, options.layout

    def __str__(self) -> str:
        more = len(self.files) - 1
        return f"{self.place}{f' and {more} more' if more else ''} as {self.format}"

    @property
    def files(self) -> list[Path]:
        """All files, those of training first."""
        return [path for split in self._splits for path in split.paths]

    @property
    def format(self) -> str:
        """The reader's name, or several."""
        return ", ".join(dict.fromkeys(split.format for split in self._splits))

    @property
    def place(self) -> Path:
        """The first file."""
        return self.files[0]

    @cached_property
    def log(self) -> Log:
        """The interactions."""
        return read_splits(self._splits, self._layout)

    @property
    def identity(self) -> dict[str, Any]:
        """What the files are, without reading their interactions."""
        places = list(dict.fromkeys(on_disk(file) or file for file in self.files))
        digests = [sha256_file(place) for place in places]
        # What decides about the rows besides the bytes: members of archives, folders that are columns, and splits.
        digests += [f"{name}={value}" for file in self.files for name, value in partition_of(file).items()]
        digests += [str(file.relative_to(place)) for file in self.files if (place := on_disk(file)) not in (None, file)]
        digests += [f"{len(split.paths)}" for split in self._splits[1:]]
        return {
            "name": self._name if len(self.files) > 1 else self.place.name,
            "format": self.format,
            "bytes": sum(place.stat().st_size for place in places),
            "sha256": digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
        }


def log_paths(options: DatasetOptions) -> list[list[Path]]:
    """The files of the log; of one whose split is given, those of training, validation and test."""
    assert options.source is not None, "a dataset given by its path is not prepared again"
    sources = [options.source, options.valid_source, options.test_source]
    return [log_files(resolve(source, downloads_folder())) for source in sources if source is not None]


class TableSource:
    """A table of pandas, polars, pyarrow or Hugging Face Datasets."""

    def __init__(self, table: Any, options: DatasetOptions) -> None:
        """UserError if it is not a table of a known library."""
        self._table, self._layout, self._title = table, options.layout, kind_of(table).title

    def __str__(self) -> str:
        return str(self.place)

    @property
    def place(self) -> Path:
        """The kind of table, which stands in for a path."""
        return Path(f"the {self._title}")

    @cached_property
    def log(self) -> Log:
        """The interactions."""
        return read_table(self._table, self._layout, self.place)

    @property
    def identity(self) -> dict[str, Any]:
        """What the table holds, whichever library holds it."""
        size = int(self.log.frame.estimated_size())
        return {"name": self._title, "format": "table", "bytes": size, "sha256": digest(self.log)}


def source_of(options: DatasetOptions, table: Any = None) -> Source:
    """The table, or the files that the options name if there is none."""
    return FileSource(options) if table is None else TableSource(table, options)
