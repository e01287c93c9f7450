"""What is said of a version in several places is the same: package, changelog, citation, workflow, extras."""

import re
import runpy
from pathlib import Path
from unittest.mock import patch

import yaml

from csrec_dist import __version__

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
MACOS_TESTS = re.compile(r"\btests/\S+")


def metadata() -> dict:
    """What setup.py tells setuptools."""
    with patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs


def test_the_changelog_and_the_citation_have_the_version_of_the_package() -> None:
    heads = re.findall(r"^## \[(.+?)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == __version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
    assert metadata()["version"] == __version__


def test_the_citation_has_what_its_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors", "journal", "year", "doi"} <= set(paper)
    assert all(set(author) == {"family-names", "given-names"} for author in paper["authors"])


def test_the_workflow_tests_the_pythons_that_the_package_names() -> None:
    named = [name.rpartition(" ")[2] for name in metadata()["classifiers"] if re.search(r"Python :: 3\.\d+$", name)]
    assert WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]["python"] == named
    assert metadata()["python_requires"] == f">={named[0]}"
    assert WORKFLOW["jobs"]["macos"]["runs-on"].startswith("macos")


def test_what_the_workflow_names_is_there() -> None:
    lines = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [target for line in lines for target in re.findall(r"\bmake (\w+)", line)]
    assert set(made) <= set(targets)
    assert {"lint", "test", "long", "docs"} <= set(made)
    assert all((ROOT / path).exists() for line in lines for path in MACOS_TESTS.findall(line))


def test_every_package_that_the_tests_may_need_has_a_pinned_version() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    wanted = [*metadata()["install_requires"], *metadata()["extras_require"]["dev"]]
    names = {re.split(r"[\[<>=; ]", each)[0].lower().replace("_", "-") for each in wanted}
    assert names <= pinned
