"""The report of a run as one self-contained HTML page and as Markdown."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from csrec_dist.files import write_text
from csrec_dist.report.answer import METRICS, Ranked, comparison_blocks, run_answer
from csrec_dist.report.costs import (
    costs_section,
    dataset_section,
    labels_section,
    stages_section,
    training_section,
)
from csrec_dist.report.document import Block, Code, Fold, Page, Section, Text, to_html, to_markdown
from csrec_dist.report.findings import (
    Pictures,
    calibration_section,
    diversity_section,
    groups_section,
    lists_section,
    metrics_section,
)
from csrec_dist.runs.run import Run


def write_report(run: Ranked | Path | str) -> Path:
    """Write report/report.md, report.html and the charts of a run, finished or not; return the path of the HTML page.

    Raises:
        UserError: the folder is not the folder of a run.
    """
    ranked = run if isinstance(run, Ranked) else Ranked.open(run)
    from csrec_dist.report.figures import draw_figures  # after the check: importing matplotlib takes a while

    folder = ranked.run.folder / "report"
    sections = _sections(ranked, draw_figures(ranked, folder))
    page = Page.of(f"Run {ranked.run.config.name}", facts(ranked.run), sections)
    write_pages(page, folder / "report")
    return folder / "report.html"


def write_pages(page: Page, stem: Path) -> None:
    """Write a page as <stem>.md and <stem>.html."""
    write_text(stem.with_name(f"{stem.name}.md"), to_markdown(page))
    write_html(page, stem.with_name(f"{stem.name}.html"))


def write_html(page: Page, path: Path) -> Path:
    """Write a page as one HTML file; its path."""
    write_text(path, to_html(page))
    return path


def facts(run: Run) -> Mapping[str, str]:
    """What a run is, in a line."""
    config = run.config
    values = {"method": config.method, "model": config.model.name, "seed": str(config.seed)}
    if (run.dataset_folder / "dataset.json").exists():
        values["source"] = str(run.dataset.info.get("source", {}).get("name", run.dataset_folder))
        values["items"] = f"{run.dataset.num_items:,}"
        values["test rows"] = f"{run.dataset.splits['test'].num_rows:,}"
    return values


def _sections(ranked: Ranked, pictures: Pictures) -> Iterator[Section]:
    run = ranked.run
    unfinished: list[Block] = []
    if run.missing:
        unfinished = [Text(f"This run is not finished. Missing stages: {', '.join(run.missing)}.", is_strong=True)]
    charts = [pictures[metric] for metric in METRICS if metric in pictures]
    yield Section.of("Answer", [run_answer(ranked), *unfinished, *charts, *comparison_blocks(ranked)])
    yield metrics_section(run)
    yield training_section(run, pictures)
    yield groups_section(run.results, pictures)
    yield calibration_section(run.results, pictures)
    yield lists_section(run.results, pictures)
    yield diversity_section(run.metrics.get("diversity", {}))
    yield stages_section(run, pictures)
    yield costs_section(run)
    yield dataset_section(run)
    yield labels_section(run)
    yield Section.of("Configuration", [Fold("config.yaml", (Code(run.config.to_yaml(), "yaml"),))])
