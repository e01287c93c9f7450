"""Reads the beginning of a raw log, plain or compressed, to recognise its format."""

import csv
import re
from pathlib import Path
from typing import Any

from csrec_dist.data.compressed import opened
from csrec_dist.errors import UserError, quoted
from csrec_dist.files import parse_json

LONGEST_LINE = 1 << 20
LONGEST_BLANK = 1 << 26
"""Bytes of blank lines, and of a line that goes on, after which a file has no first line: it may be very large."""


def first_lines(path: Path, num: int = 1) -> list[str]:
    """Up to `num` first lines that are not blank, without line endings; undecodable bytes are replaced.

    Raises UserError if the file is damaged.
    """
    lines: list[str] = []
    num_bytes = 0
    with opened(path) as file:
        while len(lines) < num and num_bytes < LONGEST_BLANK and (line := file.readline(LONGEST_LINE)):
            num_bytes += len(line)
            if line.strip():
                lines.append(line.decode("utf-8-sig", errors="replace").rstrip("\r\n"))
    return lines


def first_line(path: Path) -> str:
    """The first line that is not blank, or "" if there is none."""
    return next(iter(first_lines(path)), "")


def undecodable_line(path: Path) -> int | None:
    """The number, from 1, of the first line that is not UTF-8; None if every line is."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return None


def first_record(path: Path) -> dict[str, Any] | None:
    """The first line as a JSON object; None if it is not one."""
    line = first_line(path)
    if not line.lstrip().startswith("{"):
        return None
    try:
        return parse_json(line)
    except ValueError:
        return None


def fields(line: str, separator: str, path: Path) -> list[str]:
    """The fields of a delimited line of `path`, without quotes if the separator is a comma or semicolon.

    Raises UserError for a line with bare carriage returns or with a field of more than 128 KiB.
    """
    if separator not in ",;":
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error as error:
        raise UserError(
            f"{path}: its line that begins with {quoted(line[:20])} cannot be cut into fields ({error}); lines must "
            f"end in a line feed, and fields have at most {csv.field_size_limit():,} characters."
        ) from None


def is_number(text: str) -> bool:
    """Whether the text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_date(text: str) -> bool:
    """Whether the text begins with an ISO date."""
    return re.match(r"\d{4}-\d{2}-\d{2}", text) is not None
