"""Tables of the terminal: whole in a pipe, and never with a figure cut in a terminal."""

import pytest
from rich.table import Table

from csrec_dist.terminal import print_tables, table_console

WORDS = "a name of several words that a narrow terminal may break over lines"
FIGURE = "0.123456789012345678901234567890"


def wide_table() -> Table:
    table = Table()
    table.add_column("name", overflow="fold")
    for number in range(4):
        table.add_column(f"figure {number}", no_wrap=True)
    table.add_row(WORDS, *[FIGURE] * 4)
    return table


@pytest.mark.parametrize("columns", ["20", "80", "200", "400"])
def test_in_a_pipe_no_line_is_broken(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    small = Table("a")
    small.add_row("b")
    print_tables(small, wide_table())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if FIGURE in line]
    assert WORDS in line
    assert line.count(FIGURE) == 4


@pytest.mark.parametrize(("columns", "is_broken"), [("80", True), ("400", False)])
def test_in_a_terminal_names_are_broken_and_figures_are_whole(
    columns: str, is_broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = table_console(wide_table())
    with console.capture() as capture:
        console.print(wide_table())
    (line,) = [line for line in capture.get().splitlines() if FIGURE in line]
    assert line.count(FIGURE) == 4
    assert (WORDS not in line) == is_broken
