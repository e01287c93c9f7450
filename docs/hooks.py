"""What the site has beyond docs/: the README as its first page, the pages of the project, the results of benchmarks.

Pages keep the links that they have in the repository, which a reader of the files follows. In the site docs/ is the
root; `on_page_markdown` turns each link to a file of the repository into one between pages.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = (
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"),
    *("benchmarks/*.md", "benchmarks/results/*", "examples/*"),
)
"""Files outside docs/ that pages link to, by patterns; they keep their paths in the site."""
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
    """The page with its links as the site has them."""
    return relinked(markdown, page.file.src_uri)


def relinked(markdown: str, site_path: str) -> str:
    """A page's text whose links go from its place in the site to that of what they name; code stays as it is."""
    return "\n".join(_of_lines(markdown.split("\n"), site_path))


def _of_lines(lines: list[str], site_path: str) -> Iterator[str]:
    in_code = False
    for line in lines:
        in_code ^= line.lstrip().startswith("```")
        yield line if in_code or line.startswith("    ") else LINK.sub(lambda link: _moved(link, site_path), line)


def _moved(link: re.Match[str], site_path: str) -> str:
    text, target, anchor = link[1], link[2], link[3] or ""
    if "://" in target or target.startswith(("/", "mailto:")):
        return link[0]
    source = site_path if (ROOT / site_path).is_file() else f"docs/{site_path}"
    named = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    moved = posixpath.relpath(named.removeprefix("docs/"), posixpath.dirname(site_path) or ".")
    return f"{text}({moved}{anchor})"
