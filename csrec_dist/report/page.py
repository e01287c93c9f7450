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
from csrec_dist.report.document import Block, Code, Fold, Page, Section, Text, to_markdown
from csrec_dist.report.findings import (
    Pictures,
    calibration_section,
    diversity_section,
    groups_section,
    lists_section,
    metrics_section,
    shown,
)
from csrec_dist.runs.run import Run


def write_report(folder: Path | str) -> Path:
    """Write report/report.md, report.html and the charts of a run, finished or not; return the path of the HTML page.

    Raises:
        UserError: the folder is not the folder of a run.
    """
    run = Run.open(folder)
    from csrec_dist.report.figures import draw_figures  # here, as importing matplotlib takes a while

    ranked, target = Ranked(run), run.folder / "report"
    page = Page.of(f"Run {run.config.name}", facts(run), _sections(run, ranked, draw_figures(run, ranked, target)))
    write_pages(page, target / "report")
    return target / "report.html"


def write_pages(page: Page, stem: Path) -> None:
    """Write a page as <stem>.md and <stem>.html."""
    write_text(stem.with_name(f"{stem.name}.md"), to_markdown(page))
    write_html(page, stem.with_name(f"{stem.name}.html"))


def write_html(page: Page, path: Path) -> Path:
    """Write a page as one HTML file; its path."""
    from csrec_dist.report.html import to_html

    write_text(path, to_html(page))
    return path


def facts(run: Run) -> Mapping[str, str]:
    """What a run is, in a line."""
    config = run.config
    known = {"method": config.method, "model": config.model.name, "seed": str(config.seed)}
    if (run.dataset_folder / "dataset.json").exists():
        known["source"] = str(run.dataset.info.get("source", {}).get("name", run.dataset_folder))
        known["items"] = f"{run.dataset.num_items:,}"
        known["test rows"] = f"{run.dataset.splits['test'].num_rows:,}"
    return known


def _sections(run: Run, ranked: Ranked, pictures: Pictures) -> Iterator[Section]:
    unfinished: list[Block] = []
    if run.missing:
        unfinished = [Text(f"This run is not finished. Missing stages: {', '.join(run.missing)}.", is_strong=True)]
    answer = run_answer(run, ranked)
    yield Section.of("Answer", [answer, *unfinished, *shown(pictures, *METRICS), *comparison_blocks(run, ranked)])
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
