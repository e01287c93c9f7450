"""What is written and shown of a search: the best config, the table, the figures."""

import re
from pathlib import Path

import pytest
import yaml
from matplotlib.image import imread
from rich.console import Console

from csrec_dist.experiments.tune.figures import draw_figures
from csrec_dist.experiments.tune.results import Tuning, results_table, write_results
from csrec_dist.experiments.tune.search import Search
from csrec_dist.experiments.tune.space import Space, read_space
from csrec_dist.experiments.tune.trials import State, Trial

RAW = {
    "name": "mine",
    "dataset": {"source": "log.csv"},
    "model": {"name": "gru4rec", "width": 16},
    "training": {"beta": 0.5, "max_epochs": 7},
}
SPACE = {
    "training.learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    "training.kl": ["reverse", "forward"],
    "model.width": {"low": 8, "high": 64},
}


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(RAW, read_space(SPACE, RAW), tmp_path, num_trials=9)


class Ended:
    """Trials that have ended, as `write_results` wants them of a search."""

    def __init__(self, *trials: Trial) -> None:
        self.ended = list(trials)

    def importances(self) -> dict[str, float]:
        return {"training.kl": 0.75, "model.width": 0.25}


def trial(number: int, value: float | None, state: State = "complete", reason: str = "") -> Trial:
    values = {"training.learning_rate": 0.012345 / (number + 1), "training.kl": "forward", "model.width": 8 + number}
    return Trial(f"trial-{number:03d}", values, state, value, 7, 1234.5, reason)


def cells(page: str) -> list[list[str]]:
    """The cells of the page's table, without its head."""
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in rows[2:]]


def test_the_best_config_is_the_config_with_the_values_of_the_best_complete_trial(search: Search) -> None:
    write_results(search, Ended(trial(0, 0.1), trial(1, 0.3), trial(2, 0.9, "pruned"), trial(3, 0.3)))  # type: ignore[arg-type]
    tuning = Tuning(search.folder)
    assert tuning.best == trial(1, 0.3)
    assert (
        tuning.best_config
        == yaml.safe_load((search.folder / "best.yaml").read_text())
        == {
            "name": "mine_best",
            "dataset": {"source": "log.csv"},
            "model": {"name": "gru4rec", "width": 9},
            "training": {"beta": 0.5, "max_epochs": 7, "learning_rate": 0.012345 / 2, "kl": "forward"},
        }
    )
    assert RAW["training"] == {"beta": 0.5, "max_epochs": 7}, "what was given is left as it was"


def test_the_page_has_complete_trials_first_and_says_why_others_failed(search: Search) -> None:
    trials = trial(0, 0.1), trial(1, 0.9, "pruned"), trial(2, None, "failed", "a | b"), trial(3, 0.2)
    write_results(search, Ended(*trials))  # type: ignore[arg-type]
    page = (search.folder / "tuning.md").read_text()
    assert [row[0] for row in cells(page)] == ["trial-003", "trial-000", "trial-001", "trial-002"]
    assert cells(page)[0] == ["trial-003", "0.003086", "forward", "11", "0.2000", "7", "1,234", "complete"]
    assert cells(page)[3][4:] == ["–", "7", "1,234", "failed: a \\| b"]
    assert "4 trials: 2 complete, 1 pruned, 1 failed." in page
    assert f"csrec-dist run --config {search.folder / 'best.yaml'} trains it" in page
    pictures = [line.rpartition("(")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert pictures == ["history.png", "importance.png", *(f"{key}.png" for key in SPACE)]
    assert all(imread(search.folder / name).std() > 0 for name in pictures)
    html = (search.folder / "tuning.html").read_text()
    assert html.count("<svg") == len(pictures)
    assert html.index("Best: trial-003") < html.index("failed: a | b")


def test_a_search_without_results_has_no_trials(tmp_path: Path) -> None:
    assert Tuning(tmp_path).trials == []
    assert Tuning(tmp_path).best is None


def test_figures_are_drawn_as_far_as_there_is_something_to_draw(search: Search, tmp_path: Path) -> None:
    nothing = [], [trial(0, None, "failed", "it diverged")]
    assert [list(draw_figures(trials, search.space, {}, tmp_path)) for trials in nothing] == [[], []]
    drawn = draw_figures([trial(0, 0.1, "pruned")], search.space, {}, tmp_path)
    assert [picture.file for picture in drawn] == ["history.png", *(f"{key}.png" for key in SPACE)]


def test_the_terminal_shows_the_best_twenty_with_short_names(search: Search) -> None:
    trials = [trial(number, number / 100) for number in range(30)]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(results_table(search, trials))
    text = captured.get()
    assert "tuning of mine: 20 of 30 trials" in text
    assert "training.learning_rate" not in text
    assert "learning_rate" in text
    assert "trial-029" in text
    assert "trial-009" not in text


def test_names_that_would_be_the_same_stay_whole(tmp_path: Path) -> None:
    space = Space({"model.dropout": [0], "teachers.model.dropout": [0], "training.kl": ["reverse"]})
    both = Search(RAW, space, tmp_path, num_trials=1)
    columns = [str(column.header) for column in results_table(both, []).columns]
    assert columns[1:4] == ["model.dropout", "teachers.model.dropout", "kl"]
