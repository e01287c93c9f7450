"""A look at the beginning of a raw log, plain or gzipped, to tell its format."""

import csv
import gzip
import json
import zlib
from pathlib import Path
from typing import IO, Any

from csrec_dist.errors import UserError

LONGEST_LINE = 1 << 20


def first_lines(path: Path, num: int = 1) -> list[str]:
    """Up to `num` first lines that are not blank, without line ends; undecodable bytes are replaced.

    Raises UserError when the file is gzipped and damaged.
    """
    lines: list[str] = []
    try:
        with _open(path) as file:
            while len(lines) < num and (line := file.readline(LONGEST_LINE)):
                if line.strip():
                    lines.append(line.decode("utf-8-sig", errors="replace").rstrip("\r\n"))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}): get it again.") from None
    return lines


def first_line(path: Path) -> str:
    """The first line that is not blank; "" if there is none."""
    return next(iter(first_lines(path)), "")


def first_record(path: Path) -> dict[str, Any]:
    """The first line as a JSON object; {} if it is not one."""
    line = first_line(path)
    if not line.lstrip().startswith("{"):
        return {}
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}


def fields(line: str, separator: str, path: Path) -> list[str]:
    """The fields of a delimited line of `path`, quotes removed where the separator is a comma or semicolon.

    Raises UserError for a line with bare carriage returns or a field of more than 128 KiB.
    """
    if separator not in ",;":
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error as error:
        raise UserError(
            f"{path}: its line that begins with {line[:20]!r} cannot be cut into fields ({error}); lines must end in a "
            f"line feed, and fields have at most {csv.field_size_limit():,} characters."
        ) from None


def is_number(text: str) -> bool:
    """Whether the text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _open(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if gzipped else open(path, "rb")  # type: ignore[return-value]
