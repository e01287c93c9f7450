"""A page as values: sections of text, tables and pictures; and the Markdown and HTML that are written from them.

Whatever stands in them is text, never markup: names and ids of a log come out as they are in both forms.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Literal, Self

from csrec_dist.hub import plain

if TYPE_CHECKING:
    from jinja2 import Template

NONE = "–"
"""What a cell shows where there is no value."""
NBSP = "\u00a0"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    is_strong: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell of a table; `below` is a second line, such as a published value."""

    text: str
    is_best: bool = False
    below: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first `num_names` columns name the rows; the others hold values."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_names: int = 1

    @classmethod
    def of(cls, header: Iterable[str], rows: Iterable[Iterable[str | Cell]], num_names: int = 1) -> Self:
        """The same, of cells that may be plain texts."""
        cells = tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
        return cls(tuple(header), cells, num_names)


@dataclass(frozen=True)
class Picture:
    """A figure: its title, the file that lies beside the page, and an SVG that a page may hold as it is.

    One that is wide has several panels, and stands alone.
    """

    title: str
    file: str
    svg: str
    is_wide: bool = False


@dataclass(frozen=True)
class Code:
    """Lines that are shown as they are."""

    text: str
    language: str


@dataclass(frozen=True)
class Fold:
    """What a page shows only when asked; Markdown shows it below its title."""

    title: str
    blocks: tuple["Block", ...]


Tone = Literal["gain", "loss", "open"]


@dataclass(frozen=True)
class Answer:
    """What a page begins with: the answer in a sentence, the figures behind it, and what to do next."""

    tone: Tone
    headline: str
    details: tuple[str, ...] = ()


Block = Text | Table | Picture | Code | Fold | Answer


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading; a section without blocks is left out."""

    title: str
    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, title: str, blocks: Iterable[Block]) -> Self:
        """The same, of any iterable."""
        return cls(title, tuple(blocks))


@dataclass(frozen=True)
class Page:
    """A title, facts about what is shown, and sections; the first of them has the answer."""

    title: str
    facts: Mapping[str, str]
    sections: tuple[Section, ...]

    @classmethod
    def of(cls, title: str, facts: Mapping[str, str], sections: Iterable[Section]) -> Self:
        """The same without empty sections."""
        return cls(title, facts, tuple(section for section in sections if section.blocks))


def best_of(values: Sequence[float | None], lowest: bool = False) -> list[bool]:
    """Which of a column's values are the best: the highest, or the lowest; none where there are fewer than two."""
    present = [value for value in values if value is not None]
    if len(present) < 2 or min(present) == max(present):
        return [False] * len(values)
    best = min(present) if lowest else max(present)
    return [value == best for value in values]


def to_markdown(page: Page) -> str:
    """The page as Markdown; its pictures are links to their files."""
    return "\n\n".join(_markdown(page)) + "\n"


def _markdown(page: Page) -> Iterator[str]:
    yield f"# {plain(page.title)}"
    if page.facts:
        yield " · ".join(f"{plain(name)} {plain(value)}" for name, value in page.facts.items())
    for section in page.sections:
        yield f"## {plain(section.title)}"
        for block in section.blocks:
            yield from block_markdown(block)


def block_markdown(block: Block) -> Iterator[str]:
    """A block's paragraphs in Markdown."""
    match block:
        case Text():
            yield f"**{plain(block.text)}**" if block.is_strong else plain(block.text)
        case Table():
            yield _table_markdown(block)
        case Picture():
            yield f"![{plain(block.title)}]({block.file})"
        case Code():
            longest = max(map(len, re.findall("`+", block.text)), default=0)
            fence = "`" * max(3, longest + 1)
            yield f"{fence}{block.language}\n{block.text.rstrip()}\n{fence}"
        case Fold():
            yield f"### {plain(block.title)}"
            for inner in block.blocks:
                yield from block_markdown(inner)
        case Answer():
            yield f"**{plain(block.headline)}**"
            yield from map(plain, block.details)


def _table_markdown(table: Table) -> str:
    lines = [
        [*map(plain, table.header)],
        ["---"] * len(table.header),
        *(map(_cell_markdown, row) for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell_markdown(cell: Cell) -> str:
    text = f"**{plain(cell.text)}**" if cell.is_best else plain(cell.text)
    return f"{text}<br>{plain(cell.below)}" if cell.below else text


def to_html(page: Page) -> str:
    """The page as one HTML file that needs no other: no script, no font, no picture from elsewhere.

    All text is escaped; only the pictures, which the charts make, are put in as they are.
    """
    return _template().render(page=page)


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("csrec_dist.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    environment.filters["in_rows"] = _in_rows
    return environment.get_template("page.html.jinja")


def _in_rows(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """The blocks one by one, but pictures that follow one another together: they stand side by side."""
    for is_picture, group in groupby(blocks, lambda block: isinstance(block, Picture)):
        neighbours = list(group)
        yield from [neighbours] if is_picture else ([block] for block in neighbours)
