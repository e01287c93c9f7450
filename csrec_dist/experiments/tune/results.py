"""The results of a search: its best config, a page with a table and figures, and the same table on the terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from csrec_dist.config import read_yaml
from csrec_dist.evaluation.options import metric_title
from csrec_dist.experiments.tune.search import Search, with_values
from csrec_dist.experiments.tune.space import Raw, shown, text
from csrec_dist.experiments.tune.trials import STATES, Trial, Trials
from csrec_dist.files import read_json, write_json, write_text
from csrec_dist.report import document
from csrec_dist.report.document import NONE, Answer, Block, Page, Section, Text
from csrec_dist.report.page import write_pages
from csrec_dist.training.limits import SELECTION_METRIC

PAGE, BEST, TRIALS = "tuning.html", "best.yaml", "trials.json"
TITLE = f"Validation {metric_title(SELECTION_METRIC)}"
MOST_ROWS = 20
"""Trials that the terminal shows; the page has all."""


@dataclass(frozen=True)
class Tuning:
    """A search as its folder tells of it: best.yaml, tuning.html and the figures, and the trials' runs in runs/."""

    folder: Path

    @cached_property
    def trials(self) -> list[Trial]:
        """The trials that have ended, in their order; none before the first has."""
        path = self.folder / TRIALS
        return [Trial(**each) for each in read_json(path)] if path.exists() else []

    @property
    def best(self) -> Trial | None:
        """The complete trial with the best validation NDCG@10, the first of equal ones; None if there is none yet."""
        return max(_complete(self.trials), key=_value, default=None)

    @property
    def best_config(self) -> Raw:
        """The plain values of best.yaml: what `run` and `CSRec.from_config` take. UserError if there is none yet."""
        return read_yaml(self.folder / BEST)

    def __repr__(self) -> str:
        best = f"best {TITLE} {self.best.value:.4f}: {shown(self.best.values)}" if self.best else "none complete"
        return f"Tuning({self.folder}: {len(self.trials)} trials; {best})"


def _complete(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.state == "complete"]


def _value(trial: Trial) -> float:
    return -1.0 if trial.value is None else trial.value


def write_results(search: Search, trials: Trials) -> None:
    """Write trials.json, best.yaml, tuning.html and .md, and the figures of the trials that have ended so far."""
    from csrec_dist.experiments.tune.figures import draw_figures  # here, as importing matplotlib takes a while

    write_json(search.folder / TRIALS, [asdict(trial) for trial in trials.ended])
    tuning, base = Tuning(search.folder), search.base
    if tuning.best:
        write_text(search.folder / BEST, _best_config(search, tuning, tuning.best))
    pictures = draw_figures(tuning.trials, search.space, trials.importances(), search.folder)
    facts = {"student": base.model.name, "method": base.method, "seed": str(base.seed)}
    sections = [Section.of("Answer", _answer(search, tuning)), Section.of("Figures", pictures)]
    write_pages(Page.of(f"Tuning of {base.name}", facts, sections), search.folder / Path(PAGE).stem)


def _best_config(search: Search, tuning: Tuning, best: Trial) -> str:
    """The YAML of a run with the best values."""
    values = with_values(search.raw, {**best.values, "name": f"{search.base.name}_best"})
    head = [
        f"# The best of {len(tuning.trials)} trials: {best.name}, validation {SELECTION_METRIC} {best.value:.4f}.",
        f"# Chosen by `csrec-dist tune`: {shown(best.values)}",
    ]
    return "\n".join(head) + "\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _answer(search: Search, tuning: Tuning) -> Iterator[Block]:
    if best := tuning.best:
        yield Answer(
            "open",
            f"Best: {best.name}, {TITLE} {best.value:.4f}, with {shown(best.values)}.",
            (f"csrec-dist run --config {search.folder / BEST} trains it and evaluates it on test.",),
        )
    else:
        yield Answer("open", "No trial is complete yet.")
    counts = [f"{sum(trial.state == state for trial in tuning.trials)} {state}" for state in STATES.values()]
    yield Text(
        f"{len(tuning.trials)} trials: {', '.join(counts)}. A trial's value is the NDCG@10 of its best epoch on the "
        "validation rows; a pruned one was worse than the median of the others at the last of its epochs. No test row "
        "was read. The best of many values on the same rows flatters: compare methods that were searched alike, on "
        "test and with several seeds."
    )
    yield document.Table.of(_header(search), _rows(search, tuning.trials))


def _header(search: Search) -> list[str]:
    return ["trial", *search.space.dimensions, TITLE, "epochs", "seconds", "state"]


def _rows(search: Search, trials: Sequence[Trial]) -> list[list[str]]:
    """Complete trials first, the best on top, then pruned and failed ones."""
    states = list(STATES.values())
    in_order = sorted(trials, key=lambda trial: (states.index(trial.state), -_value(trial)))
    return [_row(search, trial) for trial in in_order]


def _row(search: Search, trial: Trial) -> list[str]:
    value = NONE if trial.value is None else f"{trial.value:.4f}"
    state = f"{trial.state}: {trial.reason}" if trial.reason else trial.state
    values = [_number(trial.values[key]) for key in search.space.dimensions]
    return [trial.name, *values, value, str(trial.num_epochs), f"{trial.seconds:,.0f}", state]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else text(value)


def results_table(search: Search, trials: Sequence[Trial]) -> Table:
    """The best trials for the terminal."""
    rows = _rows(search, trials)[:MOST_ROWS]
    title = f"tuning of {search.base.name}: {len(rows)} of {len(trials)} trials"
    terminal = Table(title=title, title_justify="left")
    short = [name.rpartition(".")[2].replace(" ", "\n") for name in _header(search)]  # keys without their sections
    for name, heading in zip(_header(search), short, strict=True):
        is_text = name in ("trial", "state")
        heading = name if short.count(heading) > 1 else heading
        terminal.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    for number, (*cells, state) in enumerate(rows):
        state = state.partition(":")[0]  # the page says why it failed
        terminal.add_row(*cells, state, style="bold" if number == 0 and state == "complete" else None)
    return terminal
