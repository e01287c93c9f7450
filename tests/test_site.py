"""The documentation's pages and their site: links, navigation, the picture, and what is built of them."""

import html
import importlib.util
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urldefrag

import polars as pl
import pytest
import yaml

from benchmarks import headline
from benchmarks.picture import LEAKS, PICTURE, TRUTH, clean_results, picture, true_gains

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
    if not path.name.startswith(".")
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def links_of(page: Path) -> Iterator[str]:
    """The targets of a page's links that lead to files; code is left out."""
    text = re.sub(r"^(```|    ).*?$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return (link for link in LINK.findall(text) if "://" not in link)


def heads_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        name, anchor = urldefrag(link)
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in heads_of(target), link


def site_config() -> dict:
    """mkdocs.yml, without the one Python name in it."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return yaml.safe_load(re.sub(r"!!python/name:\S+", "", text))


def named_in(nav: list | dict | str) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from named_in(part)


def test_every_page_of_docs_stands_in_the_navigation() -> None:
    named = list(named_in(site_config()["nav"]))
    assert len(named) == len(set(named))
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} <= set(named)


def test_the_picture_is_that_of_the_results() -> None:
    results = clean_results(LEAKS.read_text(encoding="utf-8"))
    assert len(results) == 8
    assert PICTURE.read_text(encoding="utf-8") == picture(results, true_gains(pl.read_parquet(TRUTH)))


def test_the_table_of_the_readme_is_that_of_the_results() -> None:
    lines = headline.table(pl.read_parquet(headline.RESULTS).filter(windows="disjoint"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 8
    assert not set(lines) - set(readme)


def test_the_table_of_the_readme_agrees_with_the_page_that_the_study_wrote() -> None:
    """Whose cells have a decimal more, marks and spreads."""
    page = (ROOT / "benchmarks/results/table3_lastfm.md").read_text(encoding="utf-8")
    lines = page[page.index("## Windows without overlap") :].split("\n\n")[1].splitlines()[2:]
    rows = [line.replace("**", "").strip("| ").split(" | ") for line in lines]
    results = {student: [float(re.split("[^0-9.]", cell)[0]) for cell in cells] for student, *cells in rows}
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("**", "").splitlines()
    assert len(results) == 8
    for student, values in results.items():
        [row] = [line for line in readme if line.lower().startswith(f"| {student} |")]
        *cells, _ = row.strip("| ").split(" | ")[1:]
        assert [float(value) for cell in cells for value in cell.split(" / ")] == pytest.approx(values, abs=0.0501)


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs", reason="pip install 'csrec_dist[docs]'")
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "link", "moved"),
    [
        ("README.md", "docs/python.md", "python.md"),
        ("README.md", "benchmarks/LOG.md", "benchmarks/LOG.md"),
        ("labels.md", "../benchmarks/LOG.md", "benchmarks/LOG.md"),
        ("clusters.md", "resume.md#threads", "resume.md#threads"),
        ("tutorials/python.md", "../../README.md", "../README.md"),
        ("tutorials/table3.md", "../departures.md", "../departures.md"),
        ("benchmarks/results/table3_lastfm.md", "../../docs/departures.md", "../../departures.md"),
        ("README.md", "https://arxiv.org/abs/2311.02446", "https://arxiv.org/abs/2311.02446"),
    ],
)
def test_a_link_of_the_repository_becomes_one_of_the_site(hooks: ModuleType, page: str, link: str, moved: str) -> None:
    assert hooks.for_site(f"see [it]({link}).", page) == f"see [it]({moved})."
    assert hooks.for_site(f"    see [it]({link})", page) == f"    see [it]({link})"


def test_lists_are_set_apart_and_code_is_not(hooks: ModuleType) -> None:
    assert hooks.for_site("Two:\n- one\n  more\n- two", "x.md") == "Two:\n\n- one\n  more\n- two"
    assert hooks.for_site("```\na\n- b\n```", "x.md") == "```\na\n- b\n```"


def test_examples_of_docstrings_get_their_heading(hooks: ModuleType) -> None:
    assert hooks.with_examples("What.\n\n>>> 1\n1") == "What.\n\nExamples:\n    >>> 1\n    1"
    assert hooks.with_examples("What.") == "What."


class Page(HTMLParser):
    """The links, anchors, loaded files and paragraphs of a built page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in ("script", "img", "source", "iframe") and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(values["href"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site; what is wrong with it would have been said."""
    pytest.importorskip("material", reason="pip install 'csrec_dist[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environ = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=400, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    return folder


def pages_of(folder: Path) -> list[Path]:
    """The pages of the site, without the reports in its gallery."""
    return [path for path in folder.rglob("*.html") if "gallery" not in path.parent.name]


@pytest.mark.long
def test_the_links_of_the_site_lead_somewhere_and_nothing_is_loaded_from_elsewhere(built: Path) -> None:
    pages = {path: Page(path) for path in pages_of(built)}
    assert len(pages) > 40
    for path, page in pages.items():
        for loaded in page.loaded:
            assert "://" not in loaded, f"{path} loads {loaded}"
            assert path.name == "404.html" or (path.parent / urldefrag(loaded)[0]).exists(), f"{path}: {loaded}"
        for link in page.links:
            name, anchor = urldefrag(link)
            if "://" in link or link.startswith("mailto:") or path.name == "404.html":
                continue
            target = Path(posixpath.normpath(path.parent / unquote(name))) if name else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path}: {link}"
            if anchor and target in pages:
                assert unquote(anchor) in pages[target].anchors, f"{path}: {link}"


@pytest.mark.long
def test_no_markup_is_left_in_the_text_of_the_site(built: Path) -> None:
    """Lists, tables and bold text that the site's renderer took for plain text."""
    for path in pages_of(built):
        text = re.sub(r"<(code|pre|script|style)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for paragraph in re.findall(r"<(?:p|td|li)>(.*?)</(?:p|td|li)>", text, re.DOTALL):
            plain = html.unescape(re.sub(r"<[^>]+>", "", paragraph))
            assert not re.search(r"\n- |\| ?-{3}|\*\*|\]\(|^#{1,4} |--8<--", plain), f"{path}: {plain[:300]}"
