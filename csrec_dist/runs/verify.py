"""Whether the files of a run are as they were written: every checksum compared, and what does not fit named."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

from csrec_dist.config import Config, is_resolved, load_config, require_own_hash
from csrec_dist.data.dataset import Dataset
from csrec_dist.errors import UserError
from csrec_dist.files import read_json, sha256_file
from csrec_dist.labels import verify as verify_labels
from csrec_dist.labels.format import INDEX_NAME
from csrec_dist.models.weight_files import weight_files
from csrec_dist.runs.inputs import weights_fingerprint
from csrec_dist.runs.pipeline import stages_of
from csrec_dist.runs.restarts import FOLDER as RESTARTED
from csrec_dist.runs.run import Run

CHECKPOINTS = "checkpoints/**/step-*"

ResultT = TypeVar("ResultT")


def verify(folder: Path | str) -> list[str]:
    """What is wrong with the files of a run, finished or not: a sentence each, none where all are sound.

    Compares the config's hash, the checksums of all records, of the dataset (also of a shared one), labels,
    checkpoints and ranks, and loads the models; also of results that are being made in restart/. What a record names is
    there. What no number is read from is not looked at: TensorBoard's files and the report.

    Raises:
        UserError: it is not the folder of a run.
    """
    run = Run(folder)
    if not is_resolved(run.folder / "config.yaml"):
        raise UserError(f"{run.folder} is not the folder of a run: it has no config.yaml written by a run.")
    return list(dict.fromkeys(_problems(run)))


def _problems(run: Run) -> Iterator[str]:
    yield from _problem(require_own_hash, run.folder / "config.yaml")
    config, _ = _attempt(load_config, run.folder / "config.yaml")
    shared = None if config is None else config.dataset.path
    yield from _of_records(run.folder)
    yield from _of_earlier_stages(run, config) if config else ()
    is_needed = bool(shared) or run.record_file("prepare").exists()
    dataset = yield from _of_dataset(Path(shared) if shared else run.folder / "dataset", is_needed=is_needed)
    yield from _of_models(run)
    # Without a record they are yet to be made again, or of another method: not of the dataset that is there now.
    yield from _of_labels(run.folder, dataset if run.record_file("label").exists() else None)
    yield from _of_checkpoints(run.folder)
    yield from _of_ranks(run)
    if run.record_file("evaluate").exists() and not (run.folder / "metrics.json").exists():
        yield f"{run.folder / 'metrics.json'} is missing. Evaluate again with --restart evaluate."
    recorded, index = _outputs(run, "label").get("index"), run.folder / "labels" / INDEX_NAME
    if recorded is not None and not index.exists():
        yield f"{index} is missing, but the record of its stage names it."
    elif recorded is not None and sha256_file(index)[:16] != recorded:
        yield f"{index} is not the one that stage label wrote; restart that stage."
    beside = run.folder / RESTARTED
    remade = yield from _of_dataset(beside / "dataset", is_needed=False)
    for folder in _model_folders(beside).values():
        yield from _of_model(folder)
    yield from _of_labels(beside, remade or dataset)
    yield from _of_checkpoints(beside)


def _of_earlier_stages(run: Run, config: Config) -> Iterator[str]:
    """Each stage that is done is built on earlier ones, whose records are there."""
    names = {stage.name for stage in stages_of(config)} - ({"prepare"} if config.dataset.path else set())
    for stage in stages_of(config):
        absent = [name for name in stage.needs if name in names and not run.record_file(name).exists()]
        if absent and run.record_file(stage.name).exists():
            yield f"Stage {stage.name} is done, but the record of {', '.join(absent)} before it is missing."


def _of_dataset(folder: Path, *, is_needed: bool) -> Generator[str, None, Dataset | None]:
    """The dataset in a folder, if there is one and it can be opened."""
    if not is_needed and not (folder / "dataset.json").exists():
        return None
    dataset, problems = _attempt(Dataset, folder)
    yield from problems
    if dataset is not None:
        for name in dataset.file_names:
            yield from _problem(dataset.file, name)
    return dataset


def _of_records(folder: Path) -> Iterator[str]:
    """Every JSON file is read, whatever it is: one with a checksum is compared with it."""
    for path in sorted(folder.rglob("*.json")):
        if path.name != "state.json" and path.name != INDEX_NAME:  # those of checkpoints and labels, below
            yield from _problem(read_json, path)


def _of_models(run: Run) -> Iterator[str]:
    """Every model is loaded, and its weights are those in the record of the stage that trained it."""
    recorded = {"student": _outputs(run, "distill").get("weights"), "base": _outputs(run, "baseline").get("weights")}
    recorded |= {f"teachers/{name}": weights for name, weights in _outputs(run, "teach").get("members", {}).items()}
    folders = {name: run.folder / name for name, weights in recorded.items() if weights} | _model_folders(run.folder)
    for name, folder in folders.items():
        for path in sorted(folder.glob("*.json")):  # of a folder that is a link, too
            yield from _problem(read_json, path)
        files, problems = yield from _of_model(folder)
        if problems:
            continue
        if not files:
            if recorded.get(name):
                yield f"{folder} has no model, but the record of its stage names one."
        elif recorded.get(name) not in (None, weights_fingerprint(folder)):
            yield f"{folder} has other weights than the record of its stage says; restart that stage."
        elif recorded.get(name) and not (folder / "metrics.json").exists():
            yield f"{folder / 'metrics.json'} is missing, but the record of its stage names the model."


def _model_folders(root: Path) -> dict[str, Path]:
    """Where a run, or restart/, has its models, by their names in it."""
    folders = {name: root / name for name in ("student", "base")}
    return folders | {f"teachers/{path.name}": path for path in sorted(root.glob("teachers/*"))}


def _of_model(folder: Path) -> Generator[str, None, tuple[list[Path], list[str]]]:
    """Load the model of a folder, if there is one; its files, and what was wrong."""
    files, problems = _attempt(weight_files, folder)
    if files:
        from csrec_dist import models

        problems += _problem(models.load, folder)
    yield from problems
    return files or [], problems


def _of_labels(root: Path, dataset: Dataset | None) -> Iterator[str]:
    """The run's labels, and those that members are regularised by."""
    for index in [root / "labels" / INDEX_NAME, *sorted(root.glob(f"teachers/*/labels/{INDEX_NAME}"))]:
        if index.exists():
            damages, problems = _attempt(verify_labels, index.parent, dataset)
            yield from (f"{index.parent}: {each}" for each in [*(damages or []), *problems])


def _of_checkpoints(folder: Path) -> Iterator[str]:
    for checkpoint in sorted(folder.glob(CHECKPOINTS)):
        from csrec_dist.training.checkpoints import is_whole_file, read_state

        saved, problems = _attempt(read_state, checkpoint)
        yield from problems
        files = saved["files"] if saved else {}
        damaged = [name for name, sha256 in files.items() if not is_whole_file(checkpoint / name, sha256)]
        if (problems or damaged or saved is None) and checkpoint not in folder.glob(CHECKPOINTS):
            continue  # a training at work has removed it meanwhile
        if not problems and (saved is None or damaged):
            where = f" ({', '.join(damaged)})" if damaged else ""
            yield f"{checkpoint} is damaged{where}; a training that needs it resumes from the one before it."


def _of_ranks(run: Run) -> Iterator[str]:
    for name in _outputs(run, "evaluate").get("ranks", {}):
        path = run.folder / "ranks" / name
        if not path.exists():
            yield f"{path} is missing. Evaluate again with --restart evaluate."
        else:
            yield from _problem(run.require_sound_ranks, path)


def _outputs(run: Run, stage: str) -> dict[str, Any]:
    """What a stage's record says that it left; {} where there is none, or a damaged one, which is named already."""
    record, _ = _attempt(run.record, stage)
    return record.outputs if record else {}


def _problem(check: Callable[..., Any], *arguments: Any) -> list[str]:
    return _attempt(check, *arguments)[1]


def _attempt(work: Callable[..., ResultT], *arguments: Any) -> tuple[ResultT | None, list[str]]:
    """What a function gives, or None and what it says is wrong."""
    try:
        return work(*arguments), []
    except UserError as error:
        return None, [str(error)]
    except OSError as error:
        return None, [f"{error.filename} cannot be read: {error.strerror}."]
