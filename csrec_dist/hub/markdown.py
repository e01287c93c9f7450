"""The Markdown of cards: the head that the Hub reads, tables, and text of logs and configs, which is no markup."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml


def card(head: Mapping[str, Any], sections: Iterable[str]) -> str:
    """A card: its head as YAML between lines of dashes, then its sections, a blank line between them."""
    opening = f"---\n{yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True)}---"
    return "\n\n".join([opening, *sections]) + "\n"


def table(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; the cells of its rows are plain text."""
    lines = [list(header), ["---"] * len(header), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text in one line that Markdown shows as it is. An underscore within a word means nothing to it."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    for sign in "\\`*[]|":
        escaped = escaped.replace(sign, f"\\{sign}")
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)


def code(text: str) -> str:
    """A block of Python."""
    return f"```python\n{text}\n```"


def bullets(lines: Iterable[str]) -> str:
    """A list, an item a line."""
    return "\n".join(f"- {line}" for line in lines)
