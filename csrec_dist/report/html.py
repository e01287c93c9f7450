"""A page as one HTML file that needs no other: no script, no font, no picture from elsewhere."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

from csrec_dist.report.document import Block, Page, Picture

if TYPE_CHECKING:
    from jinja2 import Template


def to_html(page: Page) -> str:
    """The page as HTML. All text is escaped; only the pictures, which the charts make, are put in as they are."""
    return _template().render(page=page)


def _in_rows(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """The blocks one by one, but pictures that follow one another together: they stand side by side."""
    for is_picture, group in groupby(blocks, lambda block: isinstance(block, Picture)):
        listed = list(group)
        yield from [listed] if is_picture else ([block] for block in listed)


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
