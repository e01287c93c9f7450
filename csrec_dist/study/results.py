"""A study's results: one row for each finished run as Parquet, tables as Markdown, figures as PNG."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from csrec_dist.config import is_resolved
from csrec_dist.errors import UserError
from csrec_dist.files import atomic_path, write_text
from csrec_dist.study.collecting import collect
from csrec_dist.study.elsewhere import with_rows
from csrec_dist.study.figures import draw, draw_curve
from csrec_dist.study.spec import Entry, Study
from csrec_dist.study.tables import held, table

NOTE = (
    "Test, full catalog: mean ± sample standard deviation over the seeds, their number in brackets; recall, NDCG and "
    "MRR in percent. Below, where the paper has it, its figure."
)


def refuse_foreign(folder: Path) -> None:
    """UserError for a folder with something in it that no study put there: its files might be written over."""
    content = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if content and not _is_study(folder):
        raise UserError(
            f"{folder} is not empty and holds neither runs nor results of a study, but {', '.join(content[:5])}. Give "
            "another --output, or move these files away."
        )


def _is_study(folder: Path) -> bool:
    if any(is_resolved(path) for path in folder.glob("runs/*/config.yaml")):
        return True
    page = folder / "results.md"
    return page.is_file() and NOTE[: NOTE.index(":")] in page.read_text(encoding="utf-8", errors="replace")


def write_results(study: Study, entries: Sequence[Entry], folder: Path, elsewhere: pl.DataFrame) -> Path:
    """Write results.parquet, results.md and the figures of what is finished, here or elsewhere; the page's path."""
    results = with_rows(study, collect(entries), elsewhere)
    page = [f"# {study.title}", f"{study.source}. {len(results)} of {len(entries)} runs are done. {NOTE}".lstrip(". ")]
    if len(results):
        with atomic_path(folder / "results.parquet") as temporary:
            results.write_parquet(temporary, compression="zstd")
        shown = [options for options in study.tables if len(held(results, options.where))]
        page += [_titled(options.title, table(study, options, results)) for options in shown]
    page += _images(study, entries, results, folder)
    path = folder / "results.md"
    write_text(path, "\n\n".join(page) + "\n")
    return path


def _images(study: Study, entries: Sequence[Entry], results: pl.DataFrame, folder: Path) -> Iterator[str]:
    """Draw the figures for which there is something, and link to them."""
    for curve in study.curves:
        if draw_curve(curve, entries, folder / f"{curve.name}.png"):
            yield _titled(curve.title, f"![number of interactions by item]({curve.name}.png)")
    for options in study.figures:
        if draw(options, study.values(options.where), results, folder / f"{options.name}.png"):
            yield _titled(options.title, f"![{options.metric} over {options.x}]({options.name}.png)")


def _titled(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if title else body
