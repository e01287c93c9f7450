"""A page says in Markdown and in HTML what its values say, and shows any text as text."""

from html.parser import HTMLParser

import markdown
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrec_dist.report.document import (
    Answer,
    Cell,
    Code,
    Fold,
    Page,
    Picture,
    Section,
    Table,
    Text,
    best_of,
    block_markdown,
    to_html,
    to_markdown,
)

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1)
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><b>",
    "{{ 7 * 7 }}{% for %}",
    "a & b < c > d",
    "$\\frac{$",
    "[x](javascript:alert(1))",
    "' onmouseover='x",
    "]]>--><!--",
    "_a_ **b** `c` |",
]


class Read(HTMLParser):
    """All tags and their attributes, and the text right within each tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.names: set[str] = set()
        self.texts: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.names |= {name for name, _ in attrs}
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:  # a tag without an end, such as meta
            pass

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data


@settings(deadline=None)
@given(st.sampled_from(HOSTILE) | TEXTS, st.sampled_from(HOSTILE) | TEXTS)
def test_a_cell_of_markdown_shows_any_text_as_it_is(first: str, second: str) -> None:
    (text,) = block_markdown(Table.of(("a", "b"), [("x", first), (first, second)]))
    read = Read(markdown.markdown(text, extensions=["tables"]))
    wanted = [" ".join(each.split()) for each in ("x", first, first, second)]
    assert [cell.strip() for cell in read.texts["td"]] == wanted
    assert set(read.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}


def page_of(text: str) -> Page:
    blocks = (
        Answer("open", text, (text,)),
        Text(text),
        Table.of((text, text), [(text, Cell(text, is_best=True, below=text))]),
        Fold(text, (Text(text), Code(text, "yaml"))),
        Picture(text, "a.png", "<svg></svg>"),
    )
    return Page.of(text, {text: text}, [Section(text, blocks)])


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_on_a_page_is_markup_but_the_page_s_own(text: str) -> None:
    plain, read = Read(to_html(page_of("word"))), Read(to_html(page_of(text)))
    assert read.tags == plain.tags
    assert read.names == plain.names
    for tag in ("title", "h1", "h2", "dt", "dd", "summary", "th", "td", "code", "figcaption"):
        assert text in read.texts[tag][0], tag


def test_lines_shown_as_they_are_cannot_end_their_block() -> None:
    text = "a: 1\n```\n<b>\n````\n# not a heading"
    (block,) = block_markdown(Code(text, "yaml"))
    read = Read(markdown.markdown(block, extensions=["fenced_code"]))
    assert read.tags == ["pre", "code"]
    assert read.texts["code"] == [text + "\n"]


@settings(deadline=None)
@given(TEXTS)
def test_html_shows_any_text_as_it_is(text: str) -> None:
    read = Read(to_html(page_of(text)))
    assert read.texts["code"] == [text]
    assert read.texts["h1"] == [text]


def test_the_best_are_the_highest_or_the_lowest_and_none_where_all_are_alike() -> None:
    assert best_of([1.0, 3.0, None, 3.0]) == [False, True, False, True]
    assert best_of([1.0, 3.0, None, 3.0], lowest=True) == [True, False, False, False]
    assert best_of([2.0, 2.0]) == [False, False]
    assert best_of([2.0, None]) == [False, False]


def test_best_values_and_second_lines_are_in_both_forms() -> None:
    table = Table.of(("model", "x"), [("a", Cell("0.2", is_best=True, below="12.50")), ("b", "0.1")])
    page = Page.of("t", {}, [Section("s", (table,)), Section("empty", ())])
    assert "| a | **0.2**<br>12.50 |\n| b | 0.1 |" in to_markdown(page)
    html = to_html(page)
    assert '<td class="best">0.2<br><span class="below">12.50</span></td>' in html
    assert "empty" not in to_markdown(page)
    assert html.count("<section") == html.count('href="#section-') == 1
