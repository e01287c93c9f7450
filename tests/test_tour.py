"""The tour of ARCHITECTURE.md as a program takes it: a label shard, a batch and a config key, followed by tracing."""

import dataclasses
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

import csrec_dist
from csrec_dist import models
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.prepare import prepare
from csrec_dist.distributed import Runtime
from csrec_dist.distributed.layout import LabelRanks
from csrec_dist.labels import LabelCache, LabelMember, write_labels
from csrec_dist.labels.options import LabelOptions
from csrec_dist.options import Options
from csrec_dist.runs.pipeline import execute
from csrec_dist.training import Trainer
from tests.helpers.run_folders import make_config

PACKAGE = Path(csrec_dist.__file__).parent
CPU = torch.device("cpu")
MOST_FILES, MOST_RECORDS = 6, 5


def package_file(frame: FrameType | None) -> str:
    """The file of a frame by its path in the package; empty for others."""
    name = frame.f_code.co_filename if frame else ""
    return Path(name).relative_to(PACKAGE).as_posix() if name.startswith(str(PACKAGE)) else ""


@contextmanager
def traced(note: Callable[[FrameType, str, Any], Any]) -> Iterator[None]:
    """Within the block `note` sees the calls of this thread and of those that begin in it, as sys.settrace does."""
    before = sys.gettrace(), threading.gettrace()
    threading.settrace(note)
    sys.settrace(note)
    try:
        yield
    finally:
        sys.settrace(before[0])
        threading.settrace(before[1])  # type: ignore[arg-type]


def test_one_label_shard_passes_through_six_files(tmp_path: Path) -> None:
    """From two members' states to the soft labels of some examples, read again; tools and models are not counted."""
    config = make_config(tmp_path, dataset={"num_shards": 1})
    prepare(config.dataset, tmp_path / "data")
    dataset = Dataset(tmp_path / "data")
    members = {seed: models.build(config.model, dataset.num_items, dataset.window - 1, seed) for seed in (0, 1)}
    names = [LabelMember(name=f"m{seed}", width=8, fingerprint=f"f{seed}") for seed in members]
    files: dict[str, None] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        files.setdefault(package_file(frame))

    exact = LabelOptions(dtype="float32")
    with traced(note):
        write_labels(tmp_path / "labels", dataset, members, names, LabelRanks.alone(2), device=CPU, options=exact)
        LabelCache(tmp_path / "labels", dataset).rows(np.arange(3))
    passed = [name for name in files if name.startswith(("labels/", "losses/")) and name != "labels/options.py"]
    assert "labels/writer.py" in passed
    assert "labels/cache.py" in passed
    assert len(passed) <= MOST_FILES, passed


def is_record(value: Any) -> bool:
    """Whether a value is a dataclass or named tuple of the package that has arrays of rows, in itself or in a part."""
    if not type(value).__module__.startswith("csrec_dist"):
        return False
    if dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        parts = list(value) if isinstance(value, tuple) else []
    return any((isinstance(part, torch.Tensor | np.ndarray) and part.ndim > 0) or is_record(part) for part in parts)


def test_one_batch_is_five_records_from_its_file_to_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What files hand each other, in the reading thread and in the step; a loss is computed within losses/."""
    config = make_config(tmp_path, method="base", training={"max_epochs": 1, "batch_size": 8})
    records: dict[str, str] = {}

    def note(frame: FrameType, event: str, argument: Any) -> Any:
        here = package_file(frame)
        if not here or here.startswith("losses/"):
            return None
        if event == "return":
            caller = frame.f_back
            while caller and not package_file(caller):
                caller = caller.f_back
            for value in argument if isinstance(argument, list) else [argument]:
                if package_file(caller) != here and is_record(value):
                    records.setdefault(type(value).__name__, here)
        return note

    train_epoch = Trainer.train_epoch

    def traced_epoch(self: Trainer) -> Any:
        with traced(note):
            return train_epoch(self)

    monkeypatch.setattr(Trainer, "train_epoch", traced_epoch)
    runtime = Runtime.start()
    try:
        execute(config, runtime, ["prepare", "distill"])
    finally:
        runtime.close()
    assert "Batch" in records
    assert len(records) <= MOST_RECORDS, records


def test_a_config_key_is_at_home_in_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options that define it, and the component that reads it; few keys have more than one reader."""
    config = make_config(tmp_path, training={"max_epochs": 1, "batch_size": 8})
    readers: defaultdict[str, set[str]] = defaultdict(set)

    def get(self: Options, name: str) -> Any:
        if name in type(self).model_fields:
            readers[f"{type(self).__name__}.{name}"].add(package_file(sys._getframe(1)))
        return object.__getattribute__(self, name)

    monkeypatch.setattr(Options, "__getattribute__", get, raising=False)
    runtime = Runtime.start()
    try:
        execute(config, runtime)
    finally:
        runtime.close()
    keys = {key: {file for file in files if file} for key, files in readers.items() if not key.startswith("Config.")}
    numbers = [len([file for file in files if not file.endswith("options.py")]) for files in keys.values() if files]
    assert keys["TrainingOptions.clip_norm"] == {"runs/stages/fitting.py"}
    assert median(numbers) == 1
    assert mean(number <= 1 for number in numbers) > 0.75, keys
