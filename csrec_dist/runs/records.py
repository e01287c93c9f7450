"""The records of a run's stages: which are done, with which inputs, and what they left."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from csrec_dist.errors import UserError
from csrec_dist.files import differences, fingerprint, flatten, link, read_json, write_json


@dataclass(frozen=True)
class Record:
    """A finished stage: what went in, what came out, what it took on each rank, and what its bits depend on besides."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    usage: list[dict[str, float]]
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Of the stage's inputs."""
        return fingerprint(self.inputs)


class StageRecords:
    """Reads and writes `<stage>.done.json` in a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, stage: str) -> Path:
        """The file of a stage's record."""
        return self.folder / f"{stage}.done.json"

    def record(self, stage: str) -> Record | None:
        """What a finished stage left, or None."""
        if not self.path(stage).exists():
            return None
        saved = read_json(self.path(stage))
        if not isinstance(saved, dict) or not saved.keys() >= {"inputs", "outputs", "usage"}:
            raise UserError(f"{self.path(stage)} is damaged; remove it to do the stage again.")
        return Record(saved["inputs"], saved["outputs"], saved["usage"], saved.get("environment", {}))

    def require(self, stage: str) -> Record:
        """A finished stage's record; UserError that says which command makes it."""
        record = self.record(stage)
        if record is None:
            raise UserError(
                f"Stage {stage} of {self.folder} is not done yet: run `csrec-dist {stage}` (or `run`) first."
            )
        return record

    def finish(self, stage: str, record: Record) -> None:
        """Note that a stage is done."""
        write_json(self.path(stage), {"stage": stage, "fingerprint": record.fingerprint, **asdict(record)})

    def adopt(self, stage: str, donor: "StageRecords", leaves: Sequence[str]) -> None:
        """Take a finished stage of another run as this run's: its record is copied, what it left is linked to."""
        record = donor.require(stage)
        for name in leaves:
            link(self.folder / name, donor.folder / name)
        self.finish(stage, record)
