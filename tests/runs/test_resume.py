"""Runs that are cut off anywhere: killed, stopped by a signal, resumed at the same and at other numbers of ranks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from csrec_dist.config import Config, load_config
from csrec_dist.distributed import Runtime
from csrec_dist.files import read_json
from csrec_dist.labels import writer as writing
from csrec_dist.runs.pipeline import execute, work_on
from csrec_dist.runs.run import Run
from csrec_dist.runs.stages import fitting
from csrec_dist.runs.stages.active import ActiveRun
from csrec_dist.training import Stopped, StopSignals
from csrec_dist.training import trainer as loop
from csrec_dist.training.checkpoints import Checkpoints, TrainState
from csrec_dist.training.stopping import Requests
from tests.helpers.ranks import run_ranks, wait_until
from tests.helpers.training_streams import at_each_batch

ROOT = Path(__file__).resolve().parents[2]
RUN = """
name: small
dataset: {path: %s}
model: {name: gru4rec, width: 16, dropout: 0}
method: base
training: {batch_size: 7, max_epochs: 3, learning_rate: 0.01, log_steps: 3, checkpoint_steps: 2}
evaluation: {top_n: [10]}
"""


class CutOffError(Exception):
    """Stands for whatever ends a process in the middle of a step."""


def make_config(folder: Path, dataset: Path, *overrides: str) -> Config:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"config-{os.getpid()}.yaml"
    path.write_text(RUN % dataset)
    return load_config(path, [f"output={folder}", *overrides])


@contextmanager
def acting_after(steps: int | None, act: Any) -> Iterator[None]:
    """In the block the stream of this process calls `act` in the place of the batch after that many steps."""
    left = steps

    def count() -> None:
        nonlocal left
        if left == 0:
            act()
        left = None if left is None else left - 1

    with at_each_batch(count):
        yield


def cut_off() -> None:
    raise CutOffError


def train(rank: int, world_size: int, folder: str, dataset: str, steps: int | None, *overrides: str) -> int:
    """A run that is cut off after so many steps of this process; with None it goes to its end."""
    config = make_config(Path(folder), Path(dataset), *overrides)
    with acting_after(steps, cut_off), nullcontext() if steps is None else pytest.raises(CutOffError):
        execute(config, Runtime.start())
    return len(list((Run.of(config).folder / "checkpoints").rglob("state.json")))


def train_on(world_size: int, *arguments: Any) -> list[int]:
    """The same on so many ranks; one needs no process of its own."""
    return run_ranks(train, world_size, *arguments) if world_size > 1 else [train(0, 1, *arguments)]


def epochs(folder: Path) -> torch.Tensor:
    found = read_json(folder / "small/student/metrics.json")["epochs"]
    values = [[e["loss"], e["cross_entropy"], e["valid"]["ndcg@10"], e["num_examples"], e["step"]] for e in found]
    return torch.tensor(values, dtype=torch.float64)


def weights(folder: Path) -> bytes:
    return (folder / "small/student/model.safetensors").read_bytes()


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # ranks need not load it

    log = EventAccumulator(str(folder / "small/tensorboard/distill")).Reload()
    return [(event.step, event.value) for event in log.Scalars(tag)]


def make_events_older(folder: Path) -> None:
    """As if a second had passed: TensorBoard reads a folder's files in the order of the seconds in their names."""
    for file in folder.rglob("events.out.tfevents.*"):
        *prefix, seconds, rest = file.name.split(".", 4)
        file.rename(file.with_name(".".join([*prefix, str(int(seconds) - 1), rest])))


@pytest.fixture(scope="module")
def unbroken(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    train(0, 1, str(folder), str(small_dataset), None)
    return folder


def test_killed_three_times_and_resumed_at_2_then_3_then_1_ranks_follows_the_unbroken_curve(
    small_dataset: Path, unbroken: Path, tmp_path: Path
) -> None:
    lengths = np.random.default_rng(5).integers(4, 9, 3).tolist()
    for world_size, steps in zip((1, 2, 3), lengths, strict=True):
        assert train_on(world_size, str(tmp_path), str(small_dataset), steps)[0] == 2, "checkpoints kept"
    train_on(1, str(tmp_path), str(small_dataset), None)
    torch.testing.assert_close(epochs(tmp_path), epochs(unbroken), rtol=0, atol=1e-4)
    assert len(list((tmp_path / "small/checkpoints/distill").iterdir())) == 1, "the last one is kept"


def test_killed_and_resumed_with_the_catalog_over_other_numbers_of_ranks_follows_the_unbroken_curve(
    small_dataset: Path, unbroken: Path, tmp_path: Path
) -> None:
    for world_size, catalog_parallel, steps in ((2, 2, 7), (3, 3, 5), (1, 1, 4), (2, 2, None)):
        settings = [f"distributed.catalog_parallel={catalog_parallel}"]
        train_on(world_size, str(tmp_path), str(small_dataset), steps, *settings)
        if steps:
            # The one before the newest may be of the start before, with another number of ranks.
            newest = max(tmp_path.rglob("checkpoints/**/step-*"), key=lambda folder: folder.name)
            assert len(list(newest.glob("best*.safetensors"))) == catalog_parallel
    torch.testing.assert_close(epochs(tmp_path), epochs(unbroken), rtol=0, atol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not say which files are mapped")
def test_a_resumed_training_holds_no_file_of_the_checkpoint_that_it_began_with(
    small_dataset: Path, tmp_path: Path
) -> None:
    """Where a file of a removed folder is still mapped, NFS keeps it, and the folder."""
    train_on(1, str(tmp_path), str(small_dataset), 13)
    run, held = ActiveRun(make_config(tmp_path, small_dataset), Runtime.start()), []
    run.after_epoch = lambda stage, epochs: held.append("/checkpoints/" in Path("/proc/self/maps").read_text())
    work_on(run)
    assert held
    assert not any(held)


def test_the_best_weights_outlive_a_resume(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first epoch is the best one, the student is that of a training which ended with it."""
    settings = ["training.schedule=constant", "training.warmup_steps=0", "training.patience=9"]
    train_on(1, str(tmp_path / "one"), str(small_dataset), None, *settings, "training.max_epochs=1")
    falling = iter((0.9, 0.8, 0.7))
    monkeypatch.setattr(fitting, "evaluate_model", lambda *_: {"ndcg@10": next(falling)})
    more = [*settings, "training.max_epochs=3"]
    steps = epochs(tmp_path / "one")[0, -1].int().item() + 2
    train_on(1, str(tmp_path / "three"), str(small_dataset), steps, *more)
    train_on(1, str(tmp_path / "three"), str(small_dataset), None, *more)
    assert len(epochs(tmp_path / "three")) == 3
    assert weights(tmp_path / "three") == weights(tmp_path / "one")


@pytest.mark.parametrize(("world_size", "steps"), [(1, 5), (1, 13), (2, 9)])
def test_resumed_at_the_same_number_of_ranks_is_bit_equal(
    small_dataset: Path, tmp_path: Path, world_size: int, steps: int
) -> None:
    settings = ["model.name=sasrec", "model.dropout=0.3"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_on(world_size, str(whole), str(small_dataset), None, *settings)
    train_on(world_size, str(cut), str(small_dataset), steps, *settings)
    make_events_older(cut)
    train_on(world_size, str(cut), str(small_dataset), None, *settings)
    assert weights(cut) == weights(whole)
    torch.testing.assert_close(epochs(cut), epochs(whole), rtol=1e-12, atol=0)
    found, expected = (points(folder, "train/loss") for folder in (cut, whole))
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert dict(found) == pytest.approx(dict(expected), rel=1e-6)


def test_seconds_add_up_over_starts_without_the_time_between(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that gains 100 s at each of the nine steps of the first start, eight of which a checkpoint knows."""
    gained, clock = 0, time.perf_counter

    def gain() -> None:
        nonlocal gained
        gained += 100

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + gained)
    with at_each_batch(gain):
        train(0, 1, str(tmp_path), str(small_dataset), 9)
    gained += 10_000
    train(0, 1, str(tmp_path), str(small_dataset), None)
    seconds = read_json(tmp_path / "small/student/metrics.json")["seconds"]
    assert 700 < seconds < 10_000


def stopped(rank: int, world_size: int, folder: str, dataset: str, signum: int) -> list[Any]:
    """The last rank gets a signal; the status of each rank and its checkpoint."""
    config = make_config(Path(folder), Path(dataset), "training.checkpoint_steps=null")
    before = signal.getsignal(signum)
    steps = 9 if rank == world_size - 1 else None
    with acting_after(steps, partial(os.kill, os.getpid(), signum)), pytest.raises(Stopped) as caught:
        execute(config, Runtime.start())
    assert signal.getsignal(signum) is before
    newest = max((Run.of(config).folder / "checkpoints/distill").glob("step-*"))
    return [caught.value.code, read_json(newest / "state.json")["step"]]


@pytest.mark.parametrize(("world_size", "signum", "status"), [(2, signal.SIGTERM, 143), (1, signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_and_its_status(
    small_dataset: Path, unbroken: Path, tmp_path: Path, world_size: int, signum: int, status: int
) -> None:
    arguments = str(tmp_path), str(small_dataset), signum
    found = run_ranks(stopped, world_size, *arguments) if world_size > 1 else [stopped(0, 1, *arguments)]
    assert all(code == status and step > 0 for code, step in found), "within an epoch, and all ranks alike"
    assert len({step for _, step in found}) == 1
    train_on(1, str(tmp_path), str(small_dataset), None)
    torch.testing.assert_close(epochs(tmp_path), epochs(unbroken), rtol=0, atol=1e-4)


def test_where_the_time_went_is_in_tensorboard_the_book_and_the_report(unbroken: Path) -> None:
    from csrec_dist.report import costs, write_report

    busy, data = ([value for _, value in points(unbroken, f"time/{name}/max")] for name in ("busy", "data_wait"))
    assert len(busy) == len(data) == 3
    usage = read_json(unbroken / "small/distill.done.json")["usage"][0]
    assert usage["collective_wait_seconds"] == 0
    assert 0 < sum(data) < usage["data_wait_seconds"], "evaluation waits for data too"
    assert sum(busy) + sum(data) < usage["seconds"]
    shares = costs.time_shares(Run.open(unbroken / "small"), "distill")
    waited = usage["data_wait_seconds"] / usage["seconds"]
    assert shares == [f"{1 - waited:.0%}", f"{waited:.0%}", "0%"]
    assert costs.shares_text([0.5, 0.25, 0.75, 0.5, 0.5]) == "25% to 75%"
    page = write_report(unbroken / "small").with_suffix(".md").read_text()
    assert "| busy | waited for data | waited for others |" in page


def test_a_signal_that_comes_too_late_is_delivered_at_the_end() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _: heard.append(signum))
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGTERM)
            assert signals.received == signal.SIGTERM
            assert not heard
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt_three_times() -> None:
    """Twice at once, as a launcher does that passes a Ctrl-C on, and ten seconds later."""
    with StopSignals(), pytest.MonkeyPatch.context() as patch:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        later = time.monotonic() + 10
        patch.setattr(time, "monotonic", lambda: later)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the third one should have ended the block")


def test_a_second_interrupt_ends_at_once_unless_it_is_the_launchers() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt_three_times()


def test_checkpoints_by_minutes(small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of one minute a step, one is due every third step, counted from the last one."""
    minutes, saved = 0, []

    def clock() -> float:
        nonlocal minutes
        minutes += 1
        return 60.0 * minutes

    class Noted(Checkpoints):
        def save(self, state: TrainState, *parts: Any) -> None:
            saved.append(state.step)
            super().save(state, *parts)

    monkeypatch.setattr(loop, "Requests", partial(Requests, clock=clock))
    monkeypatch.setattr(fitting, "Checkpoints", Noted)
    settings = ["training.checkpoint_steps=null", "training.checkpoint_minutes=3", "training.max_epochs=1"]
    train(0, 1, str(tmp_path), str(small_dataset), None, *settings)
    steps = int(epochs(tmp_path)[0, -1])
    assert saved == [*range(3, steps, 3), 0]


def labels_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "labels").iterdir()}


def label(rank: int, world_size: int, folder: str, dataset: str, kills: bool, restart: str | None = None) -> None:
    """A whole run; rank 1 is killed when it begins the labels of shard 3."""
    settings = ["method=model_level", "training.max_epochs=1", "training.max_steps=3"]
    real = writing.write_rows

    def write_rows(path: Path, *arguments: Any) -> Any:
        if path.name.startswith("labels-00003"):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *arguments)

    if kills and rank == 1:
        writing.write_rows = write_rows
    execute(make_config(Path(folder), Path(dataset), *settings), Runtime.start(timeout_minutes=0.05), restart=restart)


def test_a_run_killed_while_labelling_and_resumed_at_3_ranks_has_byte_equal_labels(
    small_dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=r"rank 1 died|RankFailure"):
        run_ranks(label, 2, str(tmp_path), str(small_dataset), True)
    assert (tmp_path / "small/teach.done.json").exists()
    left = {path.name for path in (tmp_path / "small/labels").glob("labels-*")}
    assert 0 < len(left) < 5
    run_ranks(label, 3, str(tmp_path), str(small_dataset), False)
    resumed = labels_of(tmp_path / "small")
    label(0, 1, str(tmp_path), str(small_dataset), False, restart="label")
    assert labels_of(tmp_path / "small") == resumed


def launcher(folder: Path, log: Path, name: str, *overrides: str) -> list[str]:
    (folder / "config.yaml").write_text(
        f"name: r\ndataset: {{source: {log}, window: 8, min_interactions: 3, num_shards: 5}}\n"
        "model: {name: gru4rec, width: 16, dropout: 0}\nmethod: base\n"
        "training: {batch_size: 2, max_epochs: 8, patience: 8, learning_rate: 0.001, checkpoint_steps: 3}\n"
    )
    return ["run", "--config", str(folder / "config.yaml"), "--set", f"output={name}", *overrides]


def kill_rank(launched: subprocess.Popen, rank: int) -> int:
    """Kill -9 one rank of a launcher; its process id."""
    for child in psutil.Process(launched.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank) and "csrec_dist" in child.cmdline():
            child.kill()
            return child.pid
    raise AssertionError(f"rank {rank} does not run")


def end(launched: subprocess.Popen) -> None:
    """Kill a launcher that still runs, and its ranks."""
    if launched.poll() is None:
        for process in [*psutil.Process(launched.pid).children(recursive=True), launched]:
            process.kill()
        launched.wait(timeout=10)


@pytest.mark.launch
@pytest.mark.long
def test_a_launcher_brings_a_run_with_a_killed_rank_back(tmp_path: Path, small_log: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "MAX_RESTARTS": "3"}
    one = [sys.executable, "-m", "csrec_dist", *launcher(tmp_path, small_log, "one")]
    subprocess.run(one, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=240)
    two = [str(ROOT / "launchers/local.sh"), "2", *launcher(tmp_path, small_log, "two")]
    with open(tmp_path / "said", "w") as said:
        launched = subprocess.Popen(two, cwd=tmp_path, env=environment, stdout=said, stderr=said)
        try:
            wait_until(lambda: list((tmp_path / "two").rglob("step-*/state.json")), 120, "a checkpoint")
            kill_rank(launched, 1)
            assert launched.wait(timeout=240) == 0, (tmp_path / "said").read_text()
        finally:
            end(launched)
    text = (tmp_path / "said").read_text()
    assert "continues at epoch" in text
    found, expected = (read_json(tmp_path / name / "r/metrics.json")["test"] for name in ("two", "one"))
    assert found == pytest.approx(expected, abs=1e-6)
    curves = [[e["loss"] for e in read_json(tmp_path / n / "r/student/metrics.json")["epochs"]] for n in ("two", "one")]
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
