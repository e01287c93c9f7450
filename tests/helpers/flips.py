"""Bits that flip in the files of a run, and what the project makes of it: it says so, or reads the same numbers."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file

from csrec_dist import models
from csrec_dist.data.append import read_log
from csrec_dist.data.dataset import LOG, Dataset
from csrec_dist.data.ids import RawIds
from csrec_dist.distributed import Group
from csrec_dist.errors import UserError
from csrec_dist.evaluation.groups import ItemPopularity
from csrec_dist.evaluation.per_row import TargetFacts
from csrec_dist.files import read_json
from csrec_dist.labels import LabelCache
from csrec_dist.runs.run import Evaluated, Run
from csrec_dist.training.checkpoints import Checkpoints, checkpoint_folders

Outcome = Literal["reported", "same numbers", "not read", "wrong"]
Reader = Callable[[], str]

ALONE = Group((0,), 0)
NOT_READ = ("tensorboard", "report")
"""Folders of a run from which the project reads no number."""

_times = count(1_000_000_000)


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """Within the block one bit of a file is another one; each change has a time of its own, as on a real machine."""
    before = path.read_bytes()
    after = bytearray(before)
    after[bit // 8] ^= 1 << bit % 8
    _write(path, after)
    try:
        yield
    finally:
        _write(path, before)


def _write(path: Path, content: bytes | bytearray) -> None:
    path.write_bytes(content)
    seconds = next(_times)
    os.utime(path, (seconds, seconds))


def files_of(run: Path) -> list[Path]:
    """The files of a run that are not empty, in a fixed order."""
    return sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)


def random_bit(files: list[Path], draw: random.Random) -> tuple[Path, int]:
    """A file, each as likely as the others, and one of its bits."""
    path = draw.choice(files)
    return path, draw.randrange(8 * path.stat().st_size)


def outcome(path: Path, bit: int, read: Reader | None, before: str, scratch: Path) -> Outcome:
    """What comes of a flipped bit, given what reads the file and what it read before."""
    if read is None:
        return "not read"
    with flipped(path, bit):
        try:
            now = read()
        except UserError:
            return "reported"
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    if now == "fell back":
        return "reported"
    return "same numbers" if now == before else "wrong"


def reader_of(run: Path, path: Path, scratch: Path) -> Reader | None:
    """What reads all numbers that the project takes from a file of a run, as a digest; None for a file of no number."""
    place = path.relative_to(run).parts
    if place[0] in NOT_READ or path.name == ".lock":
        return None
    if place[0] == "dataset":
        return lambda: of_dataset(run / "dataset", path.name)
    if place[0] == "labels":
        return lambda: of_labels(run)
    if place[0] == "checkpoints":
        newest = max(path.parents[1].glob("step-*"))
        inputs = read_json(newest / "state.json")["inputs"]
        return lambda: of_checkpoints(path.parents[1], inputs, scratch)
    if place[0] in ("teachers", "student", "base"):
        return lambda: of_model(path.parent)
    if place[0] == "threads.json":
        return lambda: digest(read_json(path))
    return lambda: of_results(run)


def of_dataset(folder: Path, name: str) -> str:
    """What is read from a file of a dataset: rows, ids and counts, or sequences; from dataset.json, what it says."""
    dataset, split = Dataset(folder), name.partition("-")[0]
    if name == "dataset.json":
        sizes = [dataset.num_items, dataset.num_users, dataset.num_shards, dataset.window, dataset.fingerprint]
        return digest([*sizes, dataset.statistics, dataset.info, dataset.checksums])
    if name == "sequences.parquet":
        return digest([each for user, items in dataset.sequences() for each in (user, items)])
    if name in ("items.parquet", "users.parquet"):
        counts = ItemPopularity.read(dataset).counts if name == "items.parquet" else None
        return digest([RawIds(dataset.file(name)).values.to_pylist(), counts])
    if name == LOG:
        log = read_log(dataset)
        return digest([log.users.to_list(), log.items.to_list(), *(column.to_list() for column in log.frame)])
    found: list[Any] = []
    for shard in range(dataset.num_shards):
        for block in dataset.open_shard(split, shard).blocks():
            found += [block.values, block.starts, block.rows, block.users, block.example_offsets]
    if split == "test":
        facts = [TargetFacts.read(dataset, shard) for shard in range(dataset.num_shards)]
        found += [each for fact in facts for each in (fact.ratings, fact.true_targets, fact.leaked)]
    return digest(found)


def of_labels(run: Path) -> str:
    """The soft labels of all examples, and what is said of them."""
    cache = LabelCache(run / "labels", Dataset(run / "dataset"))
    fields = cache.fields(np.arange(cache.num_examples))
    tables = cache.item_tables if cache.index.form == "factored" else ()
    tensors = [*fields.values(), *(table for table in tables if table is not None)]
    return digest([cache.index.model_dump(mode="json"), *(tensor.numpy() for tensor in tensors)])


def of_model(folder: Path) -> str:
    """A model's weights and what its training says of it."""
    model = models.load(folder)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
    return digest([*weights, *weights.values(), model.config.model_dump(mode="json"), metrics])


def of_checkpoints(folder: Path, inputs: dict[str, Any], scratch: Path) -> str:
    """What a training resumes from, read from a copy; "fell back" where that is an earlier one, which is said."""
    shutil.copytree(folder, scratch)
    checkpoints = Checkpoints(scratch, inputs, ALONE)
    restored = checkpoints.restore()
    assert restored is not None
    if checkpoints.set_aside:
        return "fell back"
    state, _ = restored
    files = [load_file(path) for path in sorted(checkpoint_folders(scratch)[-1].glob("*.safetensors"))]
    found: list[Any] = [state.summary(), vars(state.so_far)]
    return digest([*found, *(file[name] for file in files for name in sorted(file)), *map(sorted, files)])


def of_results(folder: Path) -> str:
    """Config, records, metrics, curves and ranks, as reports and comparisons read them."""
    run = Run.open(folder)
    found: list[Any] = [run.config.dump(), run.metrics, run.trainings, run.missing]
    for stage in ("prepare", "teach", "label", "distill", "baseline", "evaluate"):
        if record := run.record(stage):
            found += [record.inputs, record.outputs, record.usage, record.environment]
    for result in run.results:
        found += [result.name, result.test, result.valid]
        if result.test:
            found += [column.to_numpy() for column in Evaluated(run, result.name).ranks]
    return digest(found)


def digest(values: Any) -> str:
    """A digest of plain values and arrays."""
    found = hashlib.sha256()
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, np.ndarray):
            found.update(f"{value.dtype}{value.shape}".encode())
            found.update(np.ascontiguousarray(value).tobytes())
        else:
            found.update(json.dumps(value, sort_keys=True, default=str).encode())
    return found.hexdigest()
