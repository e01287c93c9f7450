"""What a search is: a config, a space of values for some of its keys, and how many trials are done in which folder."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from csrec_dist.config import Config, parse_config, read_yaml, set_key, with_launchers_file
from csrec_dist.errors import UserError
from csrec_dist.experiments.tune.space import Raw, Space, read_space
from csrec_dist.experiments.tune.trials import FILE, RUNS, Proposal, Trials, require_optuna
from csrec_dist.files import flatten
from csrec_dist.lock import FILE as LOCK
from csrec_dist.runs.inputs import settings

Given = Path | str | Mapping[str, Any]
"""A YAML file, or plain values."""


@dataclass(frozen=True)
class Search:
    """`raw` are the config's plain values, `seed` is that of the proposals; `prunes`: whether bad trials end early."""

    raw: Raw
    space: Space
    folder: Path
    num_trials: int
    seed: int = 0
    prunes: bool = True

    @cached_property
    def base(self) -> Config:
        """The config without the values of a trial."""
        return parse_config(with_launchers_file(self.raw))

    def config(self, proposal: Proposal) -> Config:
        """The run of a trial; UserError where its values exclude each other."""
        values = {**proposal.values, "name": proposal.name, "output": str(self.folder / RUNS)}
        return parse_config(with_launchers_file(with_values(self.raw, values)))

    def open_trials(self) -> Trials:
        """Its trials, for rank 0 alone; UserError where they are of another search, or the folder is no search's."""
        content = sorted(path.name for path in self.folder.iterdir() if path.name != LOCK)
        if content and FILE not in content:
            raise UserError(
                f"{self.folder} contains no search, but {', '.join(content[:5])}. Give another --output, or move these "
                "files away."
            )
        definition = {"space": self.space.dump(), "seed": self.seed, "settings": settings(self.base)}
        definition["dataset"] = self.base.dump()["dataset"]
        return Trials(self.folder, self.space, flatten(definition), seed=self.seed, prunes=self.prunes)


def with_values(raw: Raw, values: Mapping[str, Any]) -> Raw:
    """A config's plain values with others for some keys."""
    changed = deepcopy(raw)
    for key, value in values.items():
        set_key(changed, key, value)
    return changed


def make_search(
    config: Given,
    space: Given,
    overrides: Mapping[str, Any],
    *,
    num_trials: int,
    output: Path | str,
    seed: int,
    prunes: bool,
) -> Search:
    """Check all that is given, before anything is written; the folder is `<output>/<name of the config>`.

    Raises:
        UserError: the config or the space has mistakes, or Optuna is missing.
    """
    require_optuna()
    if num_trials < 1:
        raise UserError(f"A search needs at least one trial, not {num_trials}; give --trials a larger number.")
    if not 0 <= seed < 2**31:
        raise UserError(f"The seed of a search is 0 to 2³¹ - 1, not {seed}.")
    raw = with_values(read_yaml(config) if isinstance(config, str | Path) else dict(config), overrides)
    base = parse_config(with_launchers_file(raw))
    if raw.get("model") is None:  # the usual one, of which model.width may be searched
        raw["model"] = {"name": base.model.name}
    return Search(raw, read_space(space, raw), Path(output) / base.name, num_trials, seed, prunes)
