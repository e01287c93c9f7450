"""The Markdown of cards: the head that the Hub reads, and tables whose cells may come from logs and configs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

MARKUP = "`*_[]|<>"


def card(head: Mapping[str, Any], sections: Iterable[str]) -> str:
    """A card: its head as YAML between lines of dashes, then its sections, a blank line between them."""
    opening = f"---\n{yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True)}---"
    return "\n\n".join([opening, *sections]) + "\n"


def table(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; the cells of its rows are plain text."""
    lines = [list(header), ["---"] * len(header), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that anybody may have written, without markup and in one line."""
    escaped = " ".join(text.split()).replace("\\", "\\\\")
    for sign in MARKUP:
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped


def code(text: str) -> str:
    """A block of Python."""
    return f"```python\n{text}\n```"


def bullets(lines: Iterable[str]) -> str:
    """A list, an item a line."""
    return "\n".join(f"- {line}" for line in lines)
