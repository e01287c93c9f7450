"""The book of a run's stages: which are done, with which inputs, and what they left."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csrec_dist.errors import UserError
from csrec_dist.files import fingerprint, link, read_json, write_json


@dataclass(frozen=True)
class Record:
    """A finished stage: what went in, what came out, and what it took on each rank."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    usage: list[dict[str, float]]

    @property
    def fingerprint(self) -> str:
        """Of the stage's inputs."""
        return fingerprint(self.inputs)


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In a few words each, the keys of flat inputs that have another value now, or that one of both lacks."""
    return [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


class StageBook:
    """Reads and writes `<stage>.done.json` in a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, stage: str) -> Path:
        return self.folder / f"{stage}.done.json"

    def record(self, stage: str) -> Record | None:
        """What a finished stage left, or None."""
        if not self._path(stage).exists():
            return None
        saved = read_json(self._path(stage))
        if not isinstance(saved, dict) or not saved.keys() >= {"inputs", "outputs", "usage"}:
            raise UserError(f"{self._path(stage)} is damaged; remove it to do the stage again.")
        return Record(saved["inputs"], saved["outputs"], saved["usage"])

    def require(self, stage: str) -> Record:
        """A finished stage's record; UserError that says which command makes it."""
        record = self.record(stage)
        if record is None:
            raise UserError(
                f"Stage {stage} of {self.folder} is not done yet: run `csrec-dist {stage}` (or `run`) first."
            )
        return record

    def check(self, stage: str, inputs: dict[str, Any], leavings: Path) -> bool:
        """Whether the stage is done with these inputs.

        Raises:
            UserError: it is done with other inputs (the message names what differs), or what it left is gone.
        """
        record = self.record(stage)
        if record is None:
            return False
        now = flatten(inputs)
        differences = [
            f"{key} was {record.inputs.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(record.inputs.keys() | now.keys())
            if record.inputs.get(key) != now.get(key)
        ]
        redo = f"Redo it and what depends on it with --restart {stage}, or give the run another name."
        if differences:
            raise UserError(
                f"Stage {stage} of {self.folder} was done with other inputs: {'; '.join(differences)}. {redo}"
            )
        if not leavings.exists():
            raise UserError(f"Stage {stage} of {self.folder} is done, but {leavings} is gone. {redo}")
        return True

    def finish(
        self, stage: str, inputs: dict[str, Any], outputs: dict[str, Any], usage: list[dict[str, float]]
    ) -> None:
        """Note that a stage is done."""
        flat = flatten(inputs)
        record = {"stage": stage, "fingerprint": fingerprint(flat), "inputs": flat, "outputs": outputs, "usage": usage}
        write_json(self._path(stage), record)

    def adopt(self, stage: str, donor: "StageBook", leaves: Sequence[str]) -> None:
        """Take a finished stage of another run as this run's: its record is copied, what it left is linked to."""
        record = donor.require(stage)
        for name in leaves:
            link(self.folder / name, donor.folder / name)
        self.finish(stage, record.inputs, record.outputs, record.usage)

    def forget(self, stage: str, leavings: Sequence[Path]) -> None:
        """Forget that a stage is done and remove what it left. A folder is out of the way at once, or still whole."""
        self._path(stage).unlink(missing_ok=True)
        for path in leavings:
            if path.is_dir() and not path.is_symlink():
                doomed = path.with_name(f".{path.name}.{os.getpid()}.old")
                os.replace(path, doomed)
                shutil.rmtree(doomed)
            else:
                path.unlink(missing_ok=True)
