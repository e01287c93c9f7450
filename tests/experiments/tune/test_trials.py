"""The trials of a search in SQLite: what is proposed, pruned and counted, however often the process ends between."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from csrec_dist.errors import UserError
from csrec_dist.experiments.tune.space import read_space
from csrec_dist.experiments.tune.trials import Proposal, Trial, Trials

RAW = {"name": "r", "dataset": {"source": "log.csv"}, "model": {"name": "gru4rec"}}
NUM_EPOCHS = 5
INFINITE = {
    "training.temperature": {"low": 1.0, "high": 9.0},
    "training.beta": {"low": 0.0, "high": 1.0, "step": 0.25},
    "training.kl": ["reverse", "forward"],
}
FINITE = {"training.beta": [0.25, 0.5, 0.75], "training.kl": ["reverse", "forward"]}


def opened(folder: Path, dimensions: dict[str, Any], *, seed: int = 0, prunes: bool = True, **changes: Any) -> Trials:
    folder.mkdir(exist_ok=True)
    return Trials(folder, read_space(dimensions, RAW), {"seed": seed, **changes}, seed=seed, prunes=prunes)


def epochs_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    """A made-up training, best at β = 0.5, T = 3 and in its last but one epoch."""
    off = abs(values["training.beta"] - 0.5) + abs(math.log(values.get("training.temperature", 3) / 3))
    best = 0.3 - 0.1 * off + (0.02 if values["training.kl"] == "forward" else 0)
    curve = [0.3, 0.6, 0.8, 1.0, 0.9]
    return [{"valid": {"ndcg@10": best * share}} for share in curve]


class Killed(BaseException):
    """The process is gone."""


def search(trials: Trials, num_trials: int, kill_after: int | None = None) -> Iterator[Proposal]:
    """Do trials as a process would that is killed after so many proposals and epochs."""
    left = math.inf if kill_after is None else kill_after
    while proposal := trials.propose(num_trials):
        yield proposal
        epochs, pruned = epochs_of(proposal.values), False
        for number in range(1, NUM_EPOCHS + 1):
            if (left := left - 1) < 0:
                raise Killed
            if trials.report(epochs[:number]) and number < NUM_EPOCHS:
                pruned = True
                break
        trials.end("pruned" if pruned else "complete", () if pruned else epochs)


def without_times(trials: list[Trial]) -> list[tuple[Any, ...]]:
    return [(each.name, each.values, each.state, each.value, each.num_epochs, each.reason) for each in trials]


def test_the_best_values_are_found_and_bad_trials_pruned(tmp_path: Path) -> None:
    trials = opened(tmp_path, INFINITE)
    names = [proposal.name for proposal in search(trials, 25)]
    assert names == [f"trial-{number:03d}" for number in range(25)] == [trial.name for trial in trials.ended]
    best = max((trial for trial in trials.ended if trial.state == "complete"), key=lambda trial: trial.value or 0)
    assert best.values["training.beta"] == 0.5
    assert len({trial.values["training.temperature"] for trial in trials.ended}) == 25, "each draws numbers of its own"
    assert best.value == pytest.approx(max(epoch["valid"]["ndcg@10"] for epoch in epochs_of(best.values)))
    pruned = [trial for trial in trials.ended if trial.state == "pruned"]
    assert pruned
    assert all(trial.num_epochs < NUM_EPOCHS and trial.value < best.value for trial in pruned)
    assert all(trial.state == "complete" for trial in trials.ended[:5]), "nothing to compare with yet"
    assert set(trials.importances()) == set(INFINITE)


def test_without_pruning_all_trials_are_done_to_their_end(tmp_path: Path) -> None:
    trials = opened(tmp_path, INFINITE, prunes=False)
    list(search(trials, 12))
    assert {(trial.state, trial.num_epochs) for trial in trials.ended} == {("complete", NUM_EPOCHS)}


@pytest.mark.parametrize("kill_after", [0, 1, 4, 5, 13, 26])
def test_a_search_that_is_killed_again_and_again_ends_as_an_unbroken_one(tmp_path: Path, kill_after: int) -> None:
    whole = opened(tmp_path / "whole", INFINITE)
    list(search(whole, 9))
    with pytest.raises(Killed):
        list(search(opened(tmp_path / "cut", INFINITE), 9, kill_after))
    with pytest.raises(Killed):
        list(search(opened(tmp_path / "cut", INFINITE), 9, 2))
    cut = opened(tmp_path / "cut", INFINITE)
    taken_up = [proposal.name for proposal in search(cut, 9)]
    assert len(set(taken_up)) == len(taken_up) < 10
    assert without_times(cut.ended) == without_times(whole.ended)


def test_an_interrupted_trial_comes_back_once_with_its_name_and_values(tmp_path: Path) -> None:
    """Also where other values would be proposed now, as another version of Optuna may."""
    first = opened(tmp_path, INFINITE)
    list(search(first, 2))
    proposal = first.propose(5)
    for seed in (1, 2, 3):  # whoever opens it, and ends before it does anything
        again = Trials(tmp_path, read_space(INFINITE, RAW), {"seed": 0}, seed=seed, prunes=True)
    assert again.propose(5) == proposal
    assert [trial.name for trial in again.ended] == ["trial-000", "trial-001"]
    again.end("failed", reason="it diverged")
    assert again.propose(5) not in (None, proposal)


def test_a_process_that_is_killed_while_it_requeues_leaves_no_trial_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal = opened(tmp_path, INFINITE).propose(5)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", killed)
        with pytest.raises(Killed):
            opened(tmp_path, INFINITE)
    trials = opened(tmp_path, INFINITE)
    names = [each.name for each in search(trials, 3)]
    assert names == ["trial-000", "trial-001", "trial-002"] == [trial.name for trial in trials.ended]
    assert proposal is not None
    assert trials.ended[0].values == proposal.values


def test_more_trials_go_on_from_those_there_are(tmp_path: Path) -> None:
    list(search(opened(tmp_path, INFINITE), 3))
    assert opened(tmp_path, INFINITE).propose(3) is None
    assert [proposal.name for proposal in search(opened(tmp_path, INFINITE), 5)] == ["trial-003", "trial-004"]


def test_a_finite_space_is_searched_without_trying_anything_twice(tmp_path: Path) -> None:
    trials = opened(tmp_path, FINITE, prunes=False)
    list(search(trials, 50))
    combinations = read_space(FINITE, RAW).combinations
    assert combinations is not None
    assert sorted(map(str, combinations)) == sorted(str(trial.values) for trial in trials.ended)


def test_a_failed_trial_counts_and_says_why(tmp_path: Path) -> None:
    trials = opened(tmp_path, FINITE)
    assert trials.propose(2) is not None
    trials.end("failed", reason="it diverged")
    assert trials.propose(1) is None
    (failed,) = opened(tmp_path, FINITE).ended
    assert (failed.state, failed.reason, failed.value, failed.num_epochs) == ("failed", "it diverged", None, 0)


def test_another_seed_proposes_other_values(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "0", INFINITE), opened(tmp_path / "1", INFINITE, seed=1)
    assert [each.values for each in search(one, 3)] != [each.values for each in search(other, 3)]


@pytest.mark.parametrize(
    ("dimensions", "changes"), [(FINITE, {"training.max_epochs": 9}), ({**FINITE, "training.beta": [0.5]}, {})]
)
def test_the_file_of_another_search_is_refused(
    tmp_path: Path, dimensions: dict[str, Any], changes: dict[str, Any]
) -> None:
    definition = {str(key): str(value) for key, value in FINITE.items()}
    list(search(opened(tmp_path, FINITE, **definition), 1))
    now = {str(key): str(value) for key, value in dimensions.items()}
    with pytest.raises(UserError, match=r"a search with other settings: .* was .*Give another --output"):
        opened(tmp_path, dimensions, **now, **changes)


def test_before_a_trial_has_ended_another_definition_is_a_mistake_mended(tmp_path: Path) -> None:
    assert opened(tmp_path, FINITE).propose(2) is not None
    (tmp_path / "runs/trial-000").mkdir(parents=True)  # a run of the old settings, which would refuse the new ones
    opened(tmp_path, FINITE)
    assert (tmp_path / "runs/trial-000").is_dir(), "it is to be resumed"
    trials = opened(tmp_path, {**INFINITE, "training.kl": ["forward"]}, **{"dataset.source": "other.csv"})
    assert not (tmp_path / "runs").exists()
    assert [proposal.name for proposal in search(trials, 2)] == ["trial-000", "trial-001"]
    assert {trial.values["training.kl"] for trial in trials.ended} == {"forward"}


def test_importances_are_not_made_up_from_few_trials(tmp_path: Path) -> None:
    trials = opened(tmp_path, INFINITE)
    assert trials.importances() == {}
    list(search(trials, 3))
    assert trials.importances() == {}


def test_a_failed_trial_whose_end_was_half_noted_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = opened(tmp_path, FINITE)
    trials.propose(9)

    def killed(study: optuna.Study, *given: object, **more: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(optuna.Study, "tell", killed)
        with pytest.raises(Killed):
            trials.end("failed", reason="it diverged")
    trials = opened(tmp_path, FINITE)
    assert [(each.name, each.state, each.reason) for each in trials.ended] == [("trial-000", "failed", "it diverged")]
    proposal = trials.propose(9)
    assert proposal is not None
    assert proposal.name == "trial-001"
