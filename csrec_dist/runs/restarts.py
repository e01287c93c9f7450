"""Stages done again: a new result is made in `restart/` and takes the old one's place when it is whole."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from csrec_dist.files import flatten, read_json, remove, write_record, write_text
from csrec_dist.runs.run import Record, Run

FOLDER = "restart"


class Restarts:
    """The folder `restart/` of a run: a mirror of the run's, with what is being made beside an old result.

    `<stage>.begun.json` says with which inputs a stage was begun there. It names none where the stage has to be done
    again because an earlier one was: its old result stands until then, without a record. `<stage>.replaces.json` is
    there from the moment that a new result is whole until it has taken the old one's place; a start that finds it
    carries the replacement out. `request.json` names the stage of a `--restart` that was interrupted.
    """

    def __init__(self, run: Run) -> None:
        self.folder = run.folder / FOLDER
        self._run = run

    def begun_with(self, stage: str) -> dict[str, Any] | None:
        """The flat inputs with which a stage was begun beside its old result, {} when it has yet to be; else None."""
        path = self._begun(stage)
        return read_json(path)["inputs"] if path.exists() else None

    def begin(self, stage: str, inputs: dict[str, Any], leaves: Sequence[str], copied: Sequence[str] = ()) -> None:
        """Make room for a new result, and remove what an earlier attempt has left there.

        `copied` are those of the leaves that the new result begins as copies of: hard links where the file system
        has them, since the files of a run are replaced and never changed.
        """
        self._begun(stage).unlink(missing_ok=True)
        for leaf in leaves:
            remove(self.folder / leaf)
        for leaf in copied:
            shutil.copytree(self._run.folder / leaf, self.folder / leaf, copy_function=_link_or_copy)
        write_record(self._begun(stage), {"inputs": flatten(inputs)})

    def replace(
        self, stage: str, record: Record, leaves: Sequence[str], dependents: Mapping[str, Sequence[str]], config: str
    ) -> None:
        """Put a new result, which is whole, into the old one's place, and the config it was made with (as YAML).

        The stages that depend on it (and what they leave) lose their records first; their results stand until theirs
        are made again.
        """
        stale = [
            name
            for name, theirs in dependents.items()
            if self._run.record_file(name).exists() or any((self._run.folder / leaf).exists() for leaf in theirs)
        ]
        present = [leaf for leaf in leaves if (self.folder / leaf).exists()]
        replacement = {
            "record": asdict(record),
            "leaves": list(leaves),
            "present": present,
            "dependents": stale,
            "config": config,
        }
        # Written first and removed last: a process that is killed in between leaves the whole order behind, and the
        # next start carries it out from its beginning, however far it came.
        write_record(self._replaces(stage), replacement)
        self._carry_out(stage)

    def recover(self) -> None:
        """Carry out the replacements that were cut off."""
        for path in self.folder.glob("*.replaces.json"):
            self._carry_out(path.name.removesuffix(".replaces.json"))

    @property
    def request(self) -> str | None:
        """The stage that a `--restart` named which did not come to its end."""
        path = self.folder / "request.json"
        return read_json(path)["stage"] if path.exists() else None

    def set_request(self, stage: str) -> None:
        """Note that `--restart` names this stage."""
        write_record(self.folder / "request.json", {"stage": stage})

    def is_replaced(self, stage: str) -> bool:
        """Whether a `--restart` of this stage, which did not come to its end, has done the stage itself."""
        return self.request == stage and self.begun_with(stage) is None

    def conclude(self) -> None:
        """A command has come to its end: the request is met unless its stage is still begun. An empty folder goes."""
        if self.request and self.begun_with(self.request) is None:
            (self.folder / "request.json").unlink()
        if self.folder.exists() and not any(path.is_file() for path in self.folder.rglob("*")):
            shutil.rmtree(self.folder)

    def _begun(self, stage: str) -> Path:
        return self.folder / f"{stage}.begun.json"

    def _replaces(self, stage: str) -> Path:
        return self.folder / f"{stage}.replaces.json"

    def _carry_out(self, stage: str) -> None:
        """Each step may have been done before, in a process that was killed."""
        replacement = read_json(self._replaces(stage))
        for dependent in replacement["dependents"]:
            write_record(self._begun(dependent), {"inputs": {}})
            self._run.record_file(dependent).unlink(missing_ok=True)
        self._run.record_file(stage).unlink(missing_ok=True)
        write_text(self._run.folder / "config.yaml", replacement["config"])
        for leaf in replacement["leaves"]:
            if leaf not in replacement["present"]:
                remove(self._run.folder / leaf)
            elif (self.folder / leaf).exists():
                self._move(leaf)
        remove(self.folder / ".old")
        self._run.finish(stage, Record(**replacement["record"]))
        self._begun(stage).unlink(missing_ok=True)
        self._replaces(stage).unlink()

    def _move(self, leaf: str) -> None:
        """Put one file or folder in the place of the old one.

        A folder that is not empty cannot be replaced in one step, so the old one is renamed out of the way first.
        """
        old, aside = self._run.folder / leaf, self.folder / ".old"
        remove(aside)
        if old.exists() or old.is_symlink():
            os.replace(old, aside)
        old.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.folder / leaf, old)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
