"""The files of a log: one file, or the parts that a folder, a pattern or a zip archive has; and how parsers read them.

Folders such as `date=2019-10-01` (Hive's partitions) give the rows in them a column.
"""

import io
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from csrec_dist.data.compressed import (
    PARSED_AS_THEY_ARE,
    Expansion,
    compression,
    is_archive,
    members,
    on_disk,
    opened,
)
from csrec_dist.errors import UserError, listed
from csrec_dist.storage import explained

ENDINGS = (
    *(".parquet", ".pq", ".csv", ".tsv", ".txt", ".dat", ".data", ".inter", ".json", ".jsonl", ".ndjson"),
    *(".gz", ".bz2", ".xz", ".zst", ".zip"),
)
SPLITS = re.compile(r"train|valid|dev|test", re.IGNORECASE)
NUMBER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d+")
"""What names of parts differ in: numbers, and the ids that Spark gives."""
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Part:
    """A file of a log: its path, which messages name, and what Polars can parse, UTF-8 or Parquet, plain, gz or zst.

    `partition` has the columns that its folders give all of its rows. `left_out` are the lines of `path`, ascending,
    that `text` does not have.
    """

    path: Path
    text: Path
    partition: dict[str, str | None] = field(default_factory=dict)
    left_out: tuple[int, ...] = ()

    def line_of_path(self, line: int) -> int:
        """The line of `path` that is this line of `text`, both from 1."""
        for left_out in self.left_out:
            if left_out > line:
                break
            line += 1
        return line


def is_pattern(source: str) -> bool:
    """Whether a path has wildcards: `*`, `**`, `?`, `[…]`."""
    return re.search(r"[*?\[]", source) is not None


def log_files(source: Path) -> list[Path]:
    """The files of a log, parts in the order of their names, in which numbers count as numbers (part-2 before part-10).

    `source` is a file, a folder, a pattern, a zip archive, or a file in one. Files and folders whose names begin with
    "." or "_" are no parts, unless a pattern begins so, and neither are empty files among others.

    Raises UserError if there is no file or an empty one, or several that do not look like parts of one log.
    """
    if is_pattern(str(source)) and not source.exists():
        # `**` matches a partition's folder and the files in it.
        files = list(dict.fromkeys(file for place in _matches(source) for file in _files_at(place)))
    else:
        files = _files_at(source)
    filled = [file for file in files if _size(file)]
    if not filled:
        raise UserError(f"{files[0]} is empty; a log needs at least one interaction.")
    return sorted(filled, key=lambda file: _in_numbers(str(file)))


def partition_of(path: Path) -> dict[str, str | None]:
    """The columns that the folders directly above a file give it: those named like `date=2019-10-01`."""
    columns: dict[str, str | None] = {}
    for folder in path.parents:
        name, sign, value = folder.name.partition("=")
        if not (name and sign):
            break
        columns = {name: None if value == NO_PARTITION else unquote(value), **columns}
    return columns


@contextmanager
def parts_of(
    files: Sequence[Path], encoding: str | None, max_unpacked_gib: float | None = None
) -> Iterator[list[Part]]:
    """The parts, as long as they are read: what Polars cannot parse lies in a temporary folder, unpacked and in UTF-8.

    Raises UserError if a file does not have the encoding, is damaged, or expands to more than `Expansion` allows.
    """
    with tempfile.TemporaryDirectory(prefix="csrec-log-") as folder:
        expansion, parts = Expansion(max_unpacked_gib, Path(folder)), []
        for number, file in enumerate(files):
            text, kind = file, compression(file)
            # Polars would expand a file's name that looks like a pattern.
            if encoding is not None or kind not in PARSED_AS_THEY_ARE or is_pattern(str(file)):
                text = Path(folder) / str(number)
                with open(text, "wb") as copy:
                    for piece in _pieces(file, encoding):
                        expansion.add(piece, file, is_stored=True)
                        with explained(text):
                            copy.write(piece)
            elif kind is not None:
                # Polars has all rows in memory before it can be asked how many there are.
                for piece in _pieces(file, None):
                    expansion.add(piece, file, is_stored=False)
            parts.append(Part(file, text, partition_of(file)))
        yield parts


def _pieces(file: Path, encoding: str | None) -> Iterator[bytes]:
    """The bytes of a file, decompressed and in UTF-8."""
    with opened(file) as source:
        if encoding is None:
            yield from iter(lambda: source.read(CHUNK), b"")
            return
        try:
            with io.TextIOWrapper(source, encoding, newline="") as text:
                yield from (characters.encode() for characters in iter(lambda: text.read(CHUNK), ""))
        except UnicodeError as error:
            reason = getattr(error, "reason", error)
            raise UserError(f"{file} is not of dataset.encoding {encoding} ({reason}): name another one.") from None


def _matches(pattern: Path) -> list[Path]:
    """The files and the partitions' folders that a pattern matches. Raises UserError if there is none."""
    fixed = next(index for index, part in enumerate(pattern.parts) if is_pattern(part))
    folder, varied = Path(*pattern.parts[:fixed]), pattern.parts[fixed:]
    hidden = tuple({".", "_"} - {part[0] for part in varied})
    matches = [
        place
        for place in folder.glob(str(Path(*varied)))
        if (place.is_file() or "=" in place.name)
        and not any(part.startswith(hidden) for part in place.relative_to(folder).parts)
    ]
    if not matches:
        raise UserError(f"No file matches the pattern {pattern}; name files that are there, such as logs/*.csv.")
    return matches


def _files_at(source: Path) -> list[Path]:
    if source.is_file():
        return _parts_among(_logs(members(source)), source) if is_archive(source) else [source]
    if not source.is_dir():
        if on_disk(source) is not None:
            return [source]
        raise UserError(f"{source} is a device, a pipe or another special file; a log is a file or a folder of files.")
    files = _logs(_files_below(source))
    if len(files) == 1 and is_archive(files[0]):
        return _files_at(files[0])
    return _parts_among(files, source)


def _files_below(folder: Path) -> list[Path]:
    """The files of a folder, and of its partitions."""
    entries = list(folder.iterdir())
    partitions = [entry for entry in entries if "=" in entry.name and entry.is_dir()]
    return [entry for entry in entries if entry.is_file()] + [
        file for partition in partitions for file in _files_below(partition)
    ]


def _logs(files: Sequence[Path]) -> list[Path]:
    return sorted(file for file in files if file.suffix.lower() in ENDINGS and file.name[0] not in "._")


def _parts_among(files: list[Path], source: Path) -> list[Path]:
    """The files, if their names differ in numbers only, or they are Parquet; UserError otherwise.

    Files for training, validation and test are no parts.
    """
    if not files:
        raise UserError(f"{source} contains no log (files that end in {listed(sorted(ENDINGS))}).")
    names = [str(file.relative_to(source)) for file in files]
    splits = {match.group().lower() for name in names if (match := SPLITS.search(name))}
    are_alike = len({NUMBER.sub("#", file.name) for file in files}) == 1
    if len(splits) > 1 or not (are_alike or all(file.suffix in (".parquet", ".pq") for file in files)):
        hint = "name one of them"
        if source.is_dir():
            hint += f", or those that are parts of one log by a pattern, such as {source}/*{files[0].suffix}"
        if len(splits) > 1:
            hint += "; training, validation and test files are given by dataset.split: given"
        raise UserError(f"{source} contains several files, {listed(names)}; {hint}.")
    return files


def _size(file: Path) -> int:
    if file.is_file():
        return file.stat().st_size
    with opened(file) as member:
        return len(member.read(1))


def _in_numbers(text: str) -> list[int | str]:
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", text)]
