"""What a start does with each stage of a run: leave it, do it, go on with it or replace it. Nothing is written here."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from csrec_dist.config import is_resolved
from csrec_dist.errors import StorageError, UserError
from csrec_dist.files import changed_keys, flatten, write_text
from csrec_dist.labels.format import INDEX_NAME
from csrec_dist.lock import FILE as LOCK
from csrec_dist.models.weight_files import INDEX_FILE, WEIGHTS_FILE
from csrec_dist.runs.inputs import changes
from csrec_dist.runs.run import Record, Run
from csrec_dist.runs.stages.active import ActiveRun, Stage
from csrec_dist.runs.stages.prepare import require_same
from csrec_dist.storage import GIB
from csrec_dist.writers import LEFTOVER

Way = Literal["leave", "do", "resume", "again", "continue"]
"""`do`: in its place, from a checkpoint if there is one. Beside the old result: `resume` what was begun there, do it
`again` from its beginning, or `continue` an ended training whose limits were raised."""

OURS = (".safetensors", ".json", ".parquet", ".tmp")
THREADS = "threads.json"
IGNORED = (LOCK, THREADS)


def refuse_foreign(folder: Path) -> None:
    """UserError for a folder with something in it that is not a run: nothing is written among other people's files."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"The run's folder {folder} is a file. Give the run another name.")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    # A start that was killed as it wrote its first file has left that alone.
    content = sorted(name for name in names if name not in IGNORED and not LEFTOVER.fullmatch(name))
    if content and not is_resolved(folder / "config.yaml"):
        shown = ", ".join(content[:5]) + (", …" if len(content) > 5 else "")
        raise UserError(
            f"{folder} is not empty and not the folder of a run (whose config.yaml has its hash in the first line): it "
            f"contains {shown}. Give the run another name or output, or move these files away."
        )


def claim(run: Run) -> None:
    """Make a folder a run's before anything else is put into it; UserError when it is somebody else's."""
    refuse_foreign(run.folder)
    if not (run.folder / "config.yaml").exists():
        write_text(run.folder / "config.yaml", run.config.to_yaml())


def ways(run: ActiveRun, stages: Sequence[Stage], chosen: Sequence[Stage], restart: str | None) -> dict[str, Way]:
    """What is to be done with each stage of the run.

    Raises:
        UserError: a stage was done or begun with other inputs (the message names them), its result is gone, an earlier
            stage is missing, `restart` would replace files that no run writes, or the disk is too small for it.
    """
    start = _Start(run, stages, {stage.name for stage in chosen}, restart)
    for stage in stages:
        start.ways[stage.name] = start.way(stage)
    start.check_replaced()
    return start.ways


@dataclass
class _Start:
    run: ActiveRun
    stages: Sequence[Stage]
    chosen: set[str]
    restart: str | None

    def __post_init__(self) -> None:
        self.ways: dict[str, Way] = {}
        self.inputs: dict[str, dict[str, Any]] = {}

    def way(self, stage: Stage) -> Way:
        """What is to be done with a stage, those before it being decided."""
        waits_for = [name for name in stage.needs if self.ways.get(name, "leave") != "leave"]
        record = self.run.record(stage.name)
        if record is None:
            return self._undone(stage, waits_for)
        absent = [name for name in waits_for if self.run.record(name) is None]
        if absent and absent == waits_for and stage.name != self.restart:
            raise UserError(
                f"Stage {stage.name} of {self.run.folder} is complete, but its input {', '.join(absent)} is "
                f"not. {_redo(stage)}"
            )
        return "again" if waits_for else self._done(stage, record)

    def _flat_inputs(self, stage: Stage) -> dict[str, Any]:
        self.inputs[stage.name] = stage.inputs(self.run)
        return flatten(self.inputs[stage.name])

    def _undone(self, stage: Stage, waits_for: list[str]) -> Way:
        begun, is_chosen = self.run.restarts.begun_with(stage.name), stage.name in self.chosen
        if is_chosen:
            for name in waits_for:
                if name not in self.chosen:
                    self.run.require(name)
        if waits_for or not is_chosen:
            return "do" if begun is None and stage.name != self.restart else "again"
        now = self._flat_inputs(stage)
        if stage.name == self.restart:
            return self._restarted(stage, begun, now)
        if begun is None:
            self._is_ended(stage, self.run.folder)
            if "source" in self.inputs[stage.name] and (self.run.folder / "dataset/dataset.json").exists():
                require_same(self.run.folder / "dataset", self.inputs[stage.name])
            return "do"
        if begun and (changed := changes(begun, now)):
            raise UserError(
                f"Stage {stage.name} of {self.run.folder} was started with different inputs: {changed}. {_redo(stage)}"
            )
        return self._resumed(stage) if begun else "again"

    def _done(self, stage: Stage, record: Record) -> Way:
        begun, is_chosen = self.run.restarts.begun_with(stage.name), stage.name in self.chosen
        now = self._flat_inputs(stage)
        changed = changed_keys(record.inputs, now)
        if stage.name == self.restart:
            is_repeated = self.run.restarts.request == stage.name and begun is None and not changed
            return "leave" if is_repeated else self._restarted(stage, begun, now)
        is_begun = is_chosen and bool(begun) and not changes(begun or {}, now)
        if is_begun and (changed or self.run.restarts.request == stage.name):
            return self._resumed(stage)
        if changed and stage.free and all(key.startswith(f"{stage.free}.") for key in changed):
            return "again" if is_chosen else "leave"
        if changed:
            raise UserError(
                f"Stage {stage.name} of {self.run.folder} was done with different inputs: "
                f"{changes(record.inputs, now)}. {_redo(stage)}"
            )
        for path in self._made(stage, record):
            if not path.exists():
                raise UserError(
                    f"Stage {stage.name} of {self.run.folder} is complete, but {path} is missing. {_redo(stage)}"
                )
        if not is_chosen or self._is_ended(stage, self.run.folder):
            return "leave"
        if is_begun:
            return self._resumed(stage)
        for training in stage.trainings(self.run, self.inputs[stage.name], self.run.folder):
            if not training.is_ended(self.run.training):
                training.require_checkpoint()
        return "continue"

    def _made(self, stage: Stage, record: Record) -> Iterator[Path]:
        """What a stage that is done must have left, without which later commands fail."""
        root = self.run.dataset_folder if stage.name == "prepare" else self.run.folder / stage.leaves[0]
        yield root
        if stage.name == "prepare":
            yield root / "dataset.json"
        elif stage.name == "label":
            yield root / INDEX_NAME
        elif stage.name != "evaluate":
            members = record.outputs.get("members", {})
            for model in [root / name for name in members] if stage.name == "teach" else [root]:
                yield from (model / "config.json", model / "metrics.json")
                yield model / (INDEX_FILE if (model / INDEX_FILE).exists() else WEIGHTS_FILE)

    def _restarted(self, stage: Stage, begun: dict[str, Any] | None, now: dict[str, Any]) -> Way:
        """A restart that was cut off is gone on with when it is asked for again."""
        if self.run.restarts.request == stage.name and begun and not changes(begun, now):
            return self._resumed(stage)
        return "again"

    def _resumed(self, stage: Stage) -> Way:
        self._is_ended(stage, self.run.restarts.folder)
        return "resume"

    def _is_ended(self, stage: Stage, root: Path) -> bool:
        """Whether all trainings under a root are; UserError where one does not fit the inputs or limits."""
        trainings = stage.trainings(self.run, self.inputs[stage.name], root)
        ended = [training.is_ended(self.run.training) for training in trainings]
        return all(ended)

    def check_replaced(self) -> None:
        """UserError unless what is to be replaced is a run's own, and the disk has room for old and new."""
        replaced = [stage for stage in self.stages if self.ways[stage.name] in ("again", "resume", "continue")]
        for stage in replaced:
            foreign = [path for leaf in stage.all_leaves for path in _foreign_files(self.run.folder / leaf)]
            if foreign:
                raise UserError(
                    f"Doing stage {stage.name} again would replace {foreign[0]}, a file that no run writes. Move it "
                    "away first."
                )
        # Checked before anything is begun, since a result is written beside the old one and both need room.
        self._check_room([stage for stage in replaced if stage.name in self.chosen])

    def _check_room(self, replaced: Sequence[Stage]) -> None:
        """One stage after the other is replaced, so that the largest decides."""
        needed = [
            _size(self.run.folder / leaf for leaf in stage.all_leaves)
            - _size(self.run.restarts.folder / leaf for leaf in stage.all_leaves)
            for stage in replaced
        ]
        free = shutil.disk_usage(self.run.folder).free if replaced else 0
        if max(needed, default=0) > free:
            stage = replaced[needed.index(max(needed))]
            raise StorageError(
                f"The new result of stage {stage.name} is written beside the old one and takes {max(needed) / GIB:.2f} "
                f"GiB, but the disk of {self.run.folder} has {free / GIB:.2f} GiB free. Free some space, or give the "
                "run another name or output."
            )


def _redo(stage: Stage) -> str:
    return f"Re-run it and what depends on it with --restart {stage.name}, or give the run another name."


def _foreign_files(folder: Path) -> list[Path]:
    """Files that no run writes; what is linked is another run's, and only the link is replaced."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if path.suffix not in OURS and not path.name.startswith("events.out.tfevents.")]


def _size(paths: Iterable[Path]) -> int:
    """Bytes of files and folders, linked ones too."""
    total = 0
    for path in paths:
        files = [path] if path.is_file() else path.resolve().rglob("*")
        total += sum(file.stat().st_size for file in files if file.is_file())
    return total
