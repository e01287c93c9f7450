"""The runs that a restructuring must not change: a tiny log, methods × models × layouts, and their configs."""

import contextlib
import io
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

LAYOUTS = {"1": (1, 1), "2": (2, 1), "3": (3, 1), "2x2": (4, 2)}
"""Name → (ranks, catalog_parallel)."""

TRAININGS = [
    *itertools.product(("base", "model_level", "training_level"), ("gru4rec", "sasrec")),
    ("model_level", "bert4rec"),
]
"""(method, model)."""

SPELLINGS = {"dataset.num_shards": ("dataset.num_shards", "dataset.num_lanes")}
"""Keys of `Case.config` that have had other names, with all their names, the newest first; see `fitting_spelling`."""


@dataclass(frozen=True)
class Case:
    """One run."""

    layout: str
    method: str
    model: str

    @property
    def name(self) -> str:
        """How the summary calls it."""
        return f"{self.layout}/{self.method}/{self.model}"

    @property
    def num_ranks(self) -> int:
        """How many processes it takes."""
        return LAYOUTS[self.layout][0]

    def config(self, log: Path, folder: Path) -> dict[str, Any]:
        """Key → value: as few keys as make a short run whose bits depend on nothing but the code.

        Members keep their ranks (`reassign`), since who joins whom is decided by who is ready first.
        """
        return {
            "name": "run",
            "output": str(folder),
            "dataset.source": str(log),
            "dataset.window": 8,
            "dataset.min_interactions": 3,
            "dataset.num_shards": 5,
            "model.name": self.model,
            "model.width": 16,
            "model.dropout": 0.2,
            "method": self.method,
            "training.batch_size": 8,
            "training.max_epochs": 3,
            "training.max_steps": 20,
            "training.learning_rate": 0.01,
            "training.warmup_steps": 0,
            "training.patience": 10,
            "training.log_steps": 1,
            "distributed.reassign": False,
            "distributed.catalog_parallel": LAYOUTS[self.layout][1],
        }


CASES = [Case(layout, *training) for layout in LAYOUTS for training in TRAININGS]


def chosen(patterns: Sequence[str]) -> list[Case]:
    """The cases with one of the texts in their name; all without a text."""
    return [case for case in CASES if not patterns or any(pattern in case.name for pattern in patterns)]


def write_log(path: Path) -> None:
    """A log of 40 users and 30 items, in which the next item mostly follows from the last one."""
    draws, lines = random.Random(7), ["user,item,rating,timestamp"]
    for user in range(40):
        item = draws.randrange(30)
        for time in range(draws.randrange(6, 19)):
            lines.append(f"u{user},i{item},{draws.randrange(1, 6)},{time}")
            item = (item + 1) % 30 if draws.random() < 0.8 else draws.randrange(30)
    path.write_text("\n".join(lines) + "\n")


def write_config(path: Path, values: dict[str, Any], spelling: dict[str, str]) -> None:
    """Write a config as nested YAML, with its keys as `spelling` names them."""
    raw: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = spelling.get(key, key).split(".")
        section = raw
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    path.write_text(yaml.safe_dump(raw))


def fitting_spelling(folder: Path) -> dict[str, str]:
    """The names of `SPELLINGS` under which the imported csrec_dist takes a config, asked through its command `plan`."""
    from csrec_dist.cli import main

    folder.mkdir(parents=True, exist_ok=True)
    write_log(folder / "log.csv")
    values, said = CASES[0].config(folder / "log.csv", folder), io.StringIO()
    for spelling in _spellings():
        write_config(folder / "plan.yaml", values, spelling)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            if main(["plan", "--config", str(folder / "plan.yaml")]) == 0:
                return spelling
    raise SystemExit(f"No spelling of the config's keys fits; add the new names to SPELLINGS.\n{said.getvalue()}")


def _spellings() -> Iterator[dict[str, str]]:
    for names in itertools.product(*SPELLINGS.values()):
        yield dict(zip(SPELLINGS, names, strict=True))
