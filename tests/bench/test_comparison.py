"""Two results side by side: what differs is named, and what was measured is divided."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from csrec_dist.bench.result import read_result
from csrec_dist.bench.table import comparison_table, difference_table, differing
from csrec_dist.cli import main
from csrec_dist.errors import UserError
from csrec_dist.files import read_json, write_json
from tests.helpers.bench_results import made_up


def text_of(table: Table) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(text: str, measure: str) -> list[str]:
    """The cells of the first line about a measure, behind its title."""
    line = next(line for line in text.splitlines() if measure in line)
    return [cell.strip() for cell in line.split("│")[3:6]]


def test_what_differs_is_named_with_both_values() -> None:
    machine = made_up().machines[0].model_dump() | {"processor": "another CPU"}
    log = made_up().log.model_dump() | {"items": 7}
    other = made_up(
        machines=[machine], versions={"torch": "2.14.0"}, log=log, settings={"model.width": 16}, date="later"
    )
    assert differing(made_up(), other) == [
        ("machine.0.processor", "a CPU", "another CPU"),
        ("version.torch", "2.13.0", "2.14.0"),
        ("log.items", "9", "7"),
        ("model.width", "8", "16"),
    ]
    table = difference_table(made_up(), other)
    assert table is not None
    assert "another CPU" in text_of(table)
    assert difference_table(made_up(), made_up()) is None


def test_figures_are_divided() -> None:
    stage = made_up().stages["distill"].model_dump()
    faster = stage | {"examples_per_second": [120.0, 130.0], "peak_memory_mib": [50.0, 20.0]}
    text = text_of(comparison_table(made_up(), made_up(stages={"distill": faster, "evaluate": faster})))
    assert cells(text, "examples/s") == ["100", "250", "2.50"]
    assert cells(text, "times one rank") == ["1.25", "3.12", "2.50"]
    assert cells(text, "peak memory") == ["200", "50", "0.250"]
    assert cells(text, "waited for ranks")[2] == "–", "nothing is divided by nothing"
    assert cells(text, "all-reduce, GB/s") == ["2.00", "2.00", "1.00"]
    assert "evaluate" not in text


def test_compare_prints_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up().write(tmp_path / "a.json")
    made_up(versions={"torch": "2.14.0"}).write(tmp_path / "b.json")
    assert main(["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    said = capsys.readouterr().out
    assert "version.torch" in said
    assert "2.14.0" in said
    assert "examples/s" in said
    assert main(["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 0
    assert "same machines, versions and settings" in capsys.readouterr().out


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    made_up().write(path)
    assert read_result(path) == made_up()
    write_json(path, read_json(path) | {"format_version": 2})
    with pytest.raises(UserError, match="format_version"):
        read_result(path)
    write_json(path, {"test": {"recall@10": 1}})
    with pytest.raises(UserError, match="is not a result of `csrec-dist bench`"):
        read_result(path)
