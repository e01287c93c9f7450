"""The examples of the documentation run."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize("page", ["data"])
def test_the_examples_of_a_page_run(page: str, finished_run: tuple[Path, Path]) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8").replace("runs/demo", str(finished_run[1]))
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), names)
