"""The trials of a search, in an Optuna study that SQLite keeps: proposed, followed, ended, or retried.

A trial has the name of its run's folder, trial-000, trial-001, … An interrupted one is taken up by another trial of
Optuna's with the same values and name, which resumes the run: `trials` lists each name once.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from csrec_dist.errors import UserError
from csrec_dist.experiments.tune.space import Space
from csrec_dist.files import differences, remove
from csrec_dist.training.limits import SELECTION_METRIC, Epochs

if TYPE_CHECKING:
    import optuna

FILE = "search.db"
RUNS = "runs"
NAME, REASON, DEFINITION = "name", "reason", "definition"
STARTUP_TRIALS = 5
"""Trials before proposals follow what was found, and before any trial is pruned."""
WARMUP_EPOCHS = 2
"""The first epoch after which a trial may be pruned."""

State = Literal["complete", "pruned", "failed"]
STATES: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
"""Ours by Optuna's: in the order in which readers want to see trials."""


@dataclass(frozen=True)
class Trial:
    """A trial that has ended. `value` is its best validation NDCG@10, of the epochs up to its pruning if it was pruned;
    `reason` says why it failed: it diverged, or its values exclude each other."""

    name: str
    values: dict[str, Any]
    state: State
    value: float | None
    num_epochs: int
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Proposal:
    """A trial to do: the name of its run, and its values by key of the config."""

    name: str
    values: dict[str, Any]


class Trials:
    """The trials in `<folder>/search.db`; one process at a time uses them."""

    def __init__(self, folder: Path, space: Space, definition: Mapping[str, Any], *, seed: int, prunes: bool) -> None:
        """Open the file, or begin it, and put trials back in the queue that were interrupted.

        Args:
            definition: all that decides the trials, flat; that of a search does not change.
            seed: of the proposals.
            prunes: whether a trial ends early whose best value so far is below the median of the others' at its epoch.

        Raises:
            UserError: the file is of a search with another definition.
        """
        self._space, self._seed = space, seed
        self._study = _study(folder, prunes)
        known, now = self._study.user_attrs.get(DEFINITION), dict(definition)
        if known is not None and (changed := differences(known, now)):
            if any(map(_has_ended, self._study.get_trials(deepcopy=False))):
                raise UserError(
                    f"{folder} has a search with other settings: {'; '.join(changed)}. Give another --output, or move "
                    "that folder away."
                )
            # A mistake was mended before anything was found: a run of the old settings would be in the way.
            remove(folder / RUNS)
            (folder / FILE).unlink()
            self._study, known = _study(folder, prunes), None
        if known is None:
            self._study.set_user_attr(DEFINITION, now)
        self._current: optuna.Trial | None = None
        self._num_reported = 0
        self._requeue()

    def _requeue(self) -> None:
        """Retry what was interrupted: under its name, once, wherever this process is killed meanwhile."""
        from optuna.trial import TrialState

        queued = {trial.user_attrs.get(NAME) for trial in self._of(TrialState.WAITING)}
        for trial in self._of(TrialState.RUNNING):
            name = trial.user_attrs.get(NAME)
            has_failed = REASON in trial.user_attrs  # it had ended, but for its state
            if name is not None and name not in queued and not has_failed:  # one without a name was not begun
                self._study.enqueue_trial(trial.params, user_attrs={NAME: name})
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _of(self, *states: "optuna.trial.TrialState") -> "list[optuna.trial.FrozenTrial]":
        return self._study.get_trials(deepcopy=False, states=states)

    @property
    def ended(self) -> list[Trial]:
        """The trials that are not to be done any more, by name."""
        found = []
        for each in filter(_has_ended, self._study.get_trials(deepcopy=False)):
            reported = each.intermediate_values.values()
            seconds = each.duration.total_seconds() if each.duration else 0.0
            name, values, state = each.user_attrs[NAME], self._space.values(each.params), STATES[each.state.name]
            reason = each.user_attrs.get(REASON, "")
            found.append(Trial(name, values, state, max(reported, default=None), len(reported), seconds, reason))
        return sorted(found, key=lambda trial: (len(trial.name), trial.name))

    def propose(self, num_trials: int) -> Proposal | None:
        """The next trial: an interrupted one, or a new one; None when there are `num_trials` or no values are left.

        What is new depends on the seed and on the trials that have ended alone. Of a finite space no combination is
        tried twice: where Optuna proposes one that was tried, a random one of the others is.
        """
        import optuna

        ended = self.ended
        untried = self._untried(ended)
        if not self._of(optuna.trial.TrialState.WAITING) and (len(ended) >= num_trials or untried == []):
            return None
        self._study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP_TRIALS, seed=(self._seed * 1_000_003 + len(ended)) % 2**32
        )
        trial = self._ask()
        if untried and NAME not in trial.user_attrs and self._space.values(trial.params) not in untried:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            chosen = random.Random(f"{self._seed} {len(ended)}").choice(untried)  # nosec B311
            self._study.enqueue_trial(self._space.parameters(chosen))
            trial = self._ask()
        if NAME not in trial.user_attrs:
            trial.set_user_attr(NAME, f"trial-{len(ended):03d}")
        self._current, self._num_reported = trial, 0
        return Proposal(trial.user_attrs[NAME], self._space.values(trial.params))

    def _ask(self) -> "optuna.Trial":
        return self._study.ask(self._space.distributions())

    def _untried(self, ended: list[Trial]) -> list[dict[str, Any]] | None:
        """The combinations that no trial had; None for a space that has too many."""
        if self._space.combinations is None:
            return None
        tried = [trial.values for trial in ended]
        return [each for each in self._space.combinations if each not in tried]

    @property
    def _trial(self) -> "optuna.Trial":
        assert self._current is not None, "no trial was proposed"
        return self._current

    def report(self, epochs: Epochs) -> bool:
        """Note the epochs of the trial that were not noted yet; whether it should be pruned after the last of them."""
        for number, epoch in enumerate(epochs[self._num_reported :], self._num_reported + 1):
            self._trial.report(epoch["valid"][SELECTION_METRIC], number)
        self._num_reported = len(epochs)
        return bool(self._trial.should_prune())  # a number of numpy's, which is no JSON value

    def end(self, state: State, epochs: Epochs = (), reason: str = "") -> None:
        """Note how the trial has ended; all epochs of one that is complete."""
        from optuna.trial import TrialState

        if reason:
            self._trial.set_user_attr(REASON, reason)
        if state == "complete":
            self.report(epochs)
            self._study.tell(self._trial, max(epoch["valid"][SELECTION_METRIC] for epoch in epochs))
        else:
            self._study.tell(self._trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)
        self._current = None

    def importances(self) -> dict[str, float]:
        """How much of the differences between the complete trials each key explains (PED-ANOVA), the largest first.

        Empty for fewer complete trials than two for each key, and when all have the same value.
        """
        values = [trial.value for trial in self.ended if trial.state == "complete"]
        if len(values) < 2 * len(self._space.dimensions) or len(set(values)) < 2:
            return {}
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        return dict(get_param_importances(self._study, evaluator=PedAnovaImportanceEvaluator()))


def _study(folder: Path, prunes: bool) -> "optuna.Study":
    """The study in a folder, or a new one; see `Trials`."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would say that a study begins
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / FILE).resolve()}",
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS, WARMUP_EPOCHS) if prunes else optuna.pruners.NopPruner(),
    )
    optuna.logging.set_verbosity(verbosity)
    return study


def _has_ended(trial: "optuna.trial.FrozenTrial") -> bool:
    """Whether a trial of Optuna's is one of the search that is done: it was begun, and not interrupted."""
    is_interrupted = trial.state.name == "FAIL" and REASON not in trial.user_attrs
    return trial.state.name in STATES and NAME in trial.user_attrs and not is_interrupted


def require_optuna() -> None:
    """UserError where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise UserError("tune needs Optuna, which is not installed. Install it with `pip install optuna`.")
