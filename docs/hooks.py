"""What the site has beyond docs/: the README as its first page, the pages of the project, the results of benchmarks.

Pages are written as they are read in the repository, by other renderers too. `on_page_markdown` turns each link to a
file of the repository into one between pages, docs/ being the root of the site, and sets lists apart from the line
before them, as this renderer wants it. `Examples` does the same for the examples of docstrings.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = (
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CITATION.cff", "LICENSE"),
    *("benchmarks/*.md", "benchmarks/results/*", "examples/*"),
)
"""Files outside docs/ that pages link to, by patterns; they keep their paths in the site."""
LIST = re.compile(r"(- |\d+\. )")
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                name = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """The page as the site has it."""
    return for_site(markdown, page.file.src_uri)


def for_site(markdown: str, site_path: str) -> str:
    """A page's text, whose links go from its place in the site to that of what they name; code stays as it is."""
    return "\n".join(_of_lines(markdown.split("\n"), site_path))


def _of_lines(lines: list[str], site_path: str) -> Iterator[str]:
    in_code, before = False, ""
    for line in lines:
        in_code ^= line.lstrip().startswith("```")
        is_code = in_code or line.startswith("    ")
        if not is_code and LIST.match(line) and before.strip() and not (LIST.match(before) or before.startswith(" ")):
            yield ""
        yield line if is_code else LINK.sub(lambda link: _moved(link, site_path), line)
        before = line


def _moved(link: re.Match[str], site_path: str) -> str:
    text, target, anchor = link[1], link[2], link[3] or ""
    if "://" in target or target.startswith(("/", "mailto:")):
        return link[0]
    source = site_path if (ROOT / site_path).is_file() else f"docs/{site_path}"
    named = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    moved = posixpath.relpath(named.removeprefix("docs/"), posixpath.dirname(site_path) or ".")
    return f"{text}({moved}{anchor})"


class Examples(griffe.Extension):
    """Gives the doctests at the end of a docstring the heading by which they are taken for examples."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Change the docstring of one object, if it has one with a doctest."""
        if not obj.is_alias and obj.docstring is not None:
            obj.docstring.value = with_examples(obj.docstring.value)


def with_examples(docstring: str) -> str:
    """The docstring, its first line of a doctest and all below it indented under `Examples:`."""
    lines = docstring.split("\n")
    first = next((number for number, line in enumerate(lines) if line.startswith(">>>")), len(lines))
    if first == len(lines):
        return docstring
    return "\n".join([*lines[:first], "Examples:", *(f"    {line}" if line else "" for line in lines[first:])])
