"""Pieces of a report's Markdown: tables, images, and numbers and names for readers."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from csrec_dist.report.tables import NONE

SIGNS = str.maketrans("+-", "⁺⁻")


def metric_title(name: str) -> str:
    """A metric's name for readers: Recall@10, NDCG@10, MRR; filtered Recall⁺@10, adverse Recall⁻@10."""
    return (name.capitalize() if name.startswith("recall") else name.upper()).translate(SIGNS)


def number(value: Any) -> str:
    """A statistic for readers: thousands separated, six significant digits, a dash for none."""
    if value is None:
        return NONE
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}" if isinstance(value, float) else str(value)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; what its cells hold is text, never markup."""
    lines = [header, ["---"] * len(header), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def images(paths: Mapping[str, Path]) -> Iterable[str]:
    """The figures that lie beside the page, by title."""
    for title, path in paths.items():
        yield f"![{title}]({path.name})"


def _plain(text: str) -> str:
    escaped = html.escape(" ".join(text.split()), quote=False)
    for sign in "\\`*_[]|":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped
