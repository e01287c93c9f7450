"""Stage prepare: from the raw log to the dataset folder, on rank 0."""

from pathlib import Path
from typing import Any

from csrec_dist.data.compressed import on_disk
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import fingerprint_of, prepare
from csrec_dist.data.sources import log_paths
from csrec_dist.errors import UserError
from csrec_dist.runs.inputs import deciding
from csrec_dist.runs.stages.active import ActiveRun


def inputs(run: ActiveRun) -> dict[str, Any]:
    """Dataset options and the identity of the log, which is read again only if its files seem to have changed."""
    options = run.config.dataset
    if options.path:
        if Path(options.path).resolve().is_relative_to(run.folder.resolve()):
            raise UserError(
                f"dataset.path: {options.path} lies in the run's own folder, whose dataset a restart replaces. Name "
                "the log with dataset.source, or give the run another name."
            )
        return {"dataset": {"path": Dataset(options.path).fingerprint}}
    settings = deciding(run.config, "prepare")
    record = run.record("prepare")
    if record is not None and is_unchanged(options, record.outputs.get("log", {})):
        prefix = "source."
        known = {key.removeprefix(prefix): value for key, value in record.inputs.items() if key.startswith(prefix)}
        return {**settings, "source": {**known, "fingerprint": fingerprint_of(options, known)}}
    return {**settings, "source": run.log_identity}


def is_unchanged(options: DatasetOptions, log: dict[str, Any]) -> bool:
    """Whether the log that was prepared is named again, and its files are as they were or gone since."""
    if log.get("sources") != sources_of(options):
        return False
    try:
        return stat_of(options) == log["files"]
    except UserError:
        return True


def sources_of(options: DatasetOptions) -> list[str | None]:
    """The names of the log, and of the files of a split that is given."""
    return [options.source, options.valid_source, options.test_source]


def stat_of(options: DatasetOptions) -> list[list[Any]]:
    """Path, size and time of change of the log's files; UserError when they are not there."""
    files = [(file, (on_disk(file) or file).stat()) for split in log_paths(options) for file in split]
    return [[str(file), status.st_size, status.st_mtime_ns] for file, status in files]


def require_same(folder: Path, inputs: dict[str, Any]) -> None:
    """UserError for a dataset, left by a process that was killed, of another log or other options."""
    if Dataset(folder).fingerprint != inputs["source"]["fingerprint"]:
        raise UserError(
            f"{folder} was prepared from another log or with different options; re-run it with --restart prepare."
        )


def work(run: ActiveRun, inputs: dict[str, Any]) -> dict[str, Any]:
    """From the raw log to the dataset folder, on rank 0."""

    def on_main() -> dict[str, Any]:
        options, folder = run.config.dataset, run.path("dataset")
        if options.path:
            return {"fingerprint": Dataset(options.path).fingerprint}
        if not (folder / "dataset.json").exists():
            with run.log("prepare") as log:
                prepare(options, folder, log.say)
        require_same(folder, inputs)
        log_files = {"sources": sources_of(options), "files": stat_of(options)}
        return {"fingerprint": inputs["source"]["fingerprint"], "log": log_files}

    return run.processes.on_main(on_main)
