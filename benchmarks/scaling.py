"""Speed of the student's training on 1 rank and on more, each of one thread, and where the rest of the time went.

How many times as many examples a second do R ranks train as one, on one machine? The limit is R where R cores are idle:
the global batch is the same, and each rank computes 1/R of it. What is lost to it, in milliseconds of a step:

- data: waiting for the next batch, which a thread of each rank reads ahead (one rank has a second core for it);
- count: waiting for the others in the sum of the step's examples, which runs beside the forward pass;
- forward, backward, update: what is more than 1/R of one rank's. The backward pass has the gradients' all-reduce in it,
  of which `alone` is the time when nothing else is done; Adam's update is done whole on every rank;
- cpu: processor time of all ranks together over that of one rank, which says how much is done twice.

What is timed is the training loop itself with streamed shards, factored labels of two random members and the loss
of Eq. 20; evaluation and checkpoints are left out. The numbers of ranks take turns, each in processes of its own; the
first epoch of a process is not counted, and medians over the others are shown. The losses of all numbers of ranks
are compared: without dropout they must agree to 1e-4. Run it on an idle machine:

    python benchmarks/scaling.py
    python benchmarks/scaling.py --ranks 1 2 4 --sizes gru4rec:64:256:10000 --repeats 5

Prints a table for each size and one JSON line last.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

PARTS = ("data", "count", "forward", "backward", "update", "rest")
DEFAULT_SIZES = ["sasrec:64:256:1000", "sasrec:64:512:2000", "sasrec:64:256:10000", "gru4rec:64:256:10000"]


@dataclass(frozen=True)
class Size:
    """A model, its width, the global batch in windows, and the number of items."""

    model: str
    width: int
    batch: int
    items: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """From MODEL:WIDTH:BATCH:ITEMS."""
        model, *numbers = text.split(":")
        if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
            raise argparse.ArgumentTypeError(f"{text!r} is not MODEL:WIDTH:BATCH:ITEMS, e.g. sasrec:64:256:20000")
        return cls(model, *map(int, numbers))

    def __str__(self) -> str:
        return f"{self.model}, width {self.width}, {self.batch} windows in a batch, {self.items:,} items"


@dataclass
class Clock:
    """Seconds that a rank spent in the parts of its steps since the last `take`."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the block to a part."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def take(self) -> dict[str, float]:
        """The seconds so far; from now on they begin at 0."""
        taken, self.seconds = self.seconds, {}
        return taken


def main() -> None:
    """Time all sizes on all numbers of ranks in turns, print tables and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks; the first is compared to"
    )
    parser.add_argument(
        "--sizes",
        type=Size.parse,
        nargs="+",
        default=[Size.parse(text) for text in DEFAULT_SIZES],
        metavar="MODEL:WIDTH:BATCH:ITEMS",
        help=f"default: {' '.join(DEFAULT_SIZES)}",
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of each number of ranks")
    parser.add_argument(
        "--epochs", type=int, default=3, help="epochs that are counted in a turn, after one that is not"
    )
    parser.add_argument("--steps", type=int, default=10, help="steps of an epoch")
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu",
        help="what the ranks compute on, each on a GPU of its own with cuda (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        train_as_rank(options.rank_of)
        return
    results = [compare(size, options) for size in options.sizes]
    about = {"date": str(date.today()), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    if options.device == "cuda":
        import torch

        about["gpu"] = torch.cuda.get_device_name()
    print(json.dumps({"benchmark": "scaling", **about, "python": platform.python_version(), "results": results}))


def compare(size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """One size on all numbers of ranks: the epochs of all turns, checked and summed up."""
    with tempfile.TemporaryDirectory() as folder:
        prepare_run(Path(folder), size, options)
        found: dict[int, list[dict[str, Any]]] = {number: [] for number in options.ranks}
        for _ in range(options.repeats):
            for number in options.ranks:
                found[number] += start_ranks(number, Path(folder), options.device)
    first = found[options.ranks[0]]
    for epochs in found.values():
        check_losses(epochs, first)
    summary = {number: summed_up(epochs) for number, epochs in found.items()}
    for each in summary.values():
        each["speedup"] = each["examples_per_second"] / summary[options.ranks[0]]["examples_per_second"]
        each["cpu"] = each["cpu_ms"] / summary[options.ranks[0]]["cpu_ms"]
    print_table(size, summary)
    return {"size": vars(size), "ranks": summary}


def check_losses(epochs: list[dict[str, Any]], first: list[dict[str, Any]]) -> None:
    """Refuse timings of trainings that did not do the same."""
    for epoch, expected in zip(epochs, first, strict=True):
        assert epoch["examples"] == expected["examples"], "the ranks together saw other examples"
        assert abs(epoch["loss"] - expected["loss"]) < 1e-4 * abs(expected["loss"]), (epoch["loss"], expected["loss"])


def summed_up(epochs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the epochs: examples a second, and milliseconds of a step by part."""
    names = ["examples_per_second", "cpu_ms", "alone_ms", "step_ms", *(f"{part}_ms" for part in PARTS)]
    return {name: statistics.median(epoch[name] for epoch in epochs) for name in names}


def print_table(size: Size, summary: dict[int, dict[str, float]]) -> None:
    """One line for each number of ranks."""
    print(f"\n{size}; milliseconds of a step")
    print(f"{'ranks':>5} {'examples/s':>11} {'times':>6} {'step':>8}", *(f"{part:>9}" for part in PARTS), end=" ")
    print(f"{'alone':>7} {'cpu':>5}")
    for number, each in summary.items():
        parts = (f"{each[f'{part}_ms']:9.2f}" for part in PARTS)
        print(f"{number:5} {each['examples_per_second']:11,.0f} {each['speedup']:6.2f} {each['step_ms']:8.2f}", end=" ")
        print(*parts, f"{each['alone_ms']:7.2f} {each['cpu']:5.2f}", flush=True)


def prepare_run(folder: Path, size: Size, options: argparse.Namespace) -> None:
    """A dataset of random interactions, enough for the steps of an epoch, and labels of two random members."""
    import numpy as np
    import polars as pl
    import torch

    from csrec_dist import models
    from csrec_dist.data.dataset import Dataset
    from csrec_dist.data.options import DatasetOptions
    from csrec_dist.data.prepare import prepare
    from csrec_dist.distributed.layout import LabelRanks
    from csrec_dist.labels import LabelMember, write_labels
    from csrec_dist.labels.options import LabelOptions

    random, length = np.random.default_rng(0), options.window + 2  # the last two items of a user are held out
    num_users = size.batch * options.steps
    items = random.integers(size.items, size=num_users * length)
    items[: size.items] = np.arange(size.items)[: len(items)]
    log = {"user": np.repeat(np.arange(num_users), length), "item": items, "timestamp": np.arange(len(items))}
    pl.DataFrame(log).write_parquet(folder / "log.parquet")
    source = DatasetOptions(source=str(folder / "log.parquet"), window=options.window, min_interactions=1)
    prepare(source, folder / "dataset")
    dataset = Dataset(folder / "dataset")
    config = models.config_class(size.model).model_validate({"name": size.model, "width": size.width, "dropout": 0})
    members = {k: models.build(config, dataset.num_items, dataset.window - 1, seed=k + 1) for k in range(2)}
    named = [LabelMember(name=f"random-{k}", width=size.width, fingerprint=f"{k}") for k in members]
    device = torch.device("cpu")
    write_labels(
        folder / "labels",
        dataset,
        members,
        named,
        LabelRanks.alone(2),
        device=device,
        options=LabelOptions(dtype="float32"),
    )
    task = {"model": size.model, "width": size.width, "batch": size.batch}
    task |= {"steps": options.steps, "epochs": options.epochs + 1}
    (folder / "task.json").write_text(json.dumps(task))


def start_ranks(number: int, folder: Path, device: str) -> list[dict[str, Any]]:
    """Train on so many ranks, processes of one thread each; what rank 0 wrote."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    ranks = []
    for rank in range(number):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables |= {"OMP_NUM_THREADS": 1} | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        ranks.append(subprocess.Popen([sys.executable, __file__, "--rank-of", str(folder)], env=environment))
    statuses = [process.wait() for process in ranks]
    if any(statuses):
        sys.exit(f"{number} ranks ended with statuses {statuses}")
    return json.loads((folder / "epochs.json").read_text())


def train_as_rank(folder: Path) -> None:
    """This process is one rank: train, and on rank 0 write what the epochs took."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    task = json.loads((folder / "task.json").read_text())
    if int(os.environ["WORLD_SIZE"]) > 1 and not torch.cuda.is_available():
        dist.init_process_group("gloo", timeout=timedelta(minutes=5))

    from csrec_dist.distributed import Runtime
    from csrec_dist.memory import set_allocator

    set_allocator()
    runtime = Runtime.start()
    epochs = timed_epochs(runtime, folder, task)
    if runtime.is_main:
        (folder / "epochs.json").write_text(json.dumps(epochs))
    runtime.world.barrier()
    runtime.close()


def with_clock(engine: Any, clock: Clock) -> Any:
    """An engine's class whose three parts are timed."""

    class Timed(engine):  # type: ignore[misc]
        """The engine with a clock in it."""

        def forward(self, *inputs: Any) -> Any:
            with clock.part("forward"):
                return super().forward(*inputs)

        def backward(self, *arguments: Any, **options: Any) -> None:
            with clock.part("backward"):
                super().backward(*arguments, **options)

        def step(self, learning_rate: float) -> None:
            with clock.part("update"):
                super().step(learning_rate)

    return Timed


def timed_epochs(runtime: Any, folder: Path, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Train the student on this rank and the others; each epoch but the first: its loss, examples and milliseconds."""
    from csrec_dist import models
    from csrec_dist.data.dataset import Dataset
    from csrec_dist.distributed.engines import DataParallel
    from csrec_dist.labels import LabelCache
    from csrec_dist.training import StopSignals, Trainer, TrainStep
    from csrec_dist.training.checkpoints import Checkpoints
    from csrec_dist.training.options import ResolvedTraining
    from csrec_dist.training.step import student_loss
    from csrec_dist.training.telemetry import StageLog

    clock, waits = Clock(), runtime.watch.waits

    dataset, layout = Dataset(folder / "dataset"), runtime.layout([runtime.world.ranks], 1)
    options = ResolvedTraining(
        batch_size=task["batch"], learning_rate=1e-3, warmup_steps=0, max_epochs=task["epochs"],
        patience=task["epochs"], log_steps=task["steps"], checkpoint_minutes=1e6,
    )  # fmt: skip
    settings = {"name": task["model"], "width": task["width"], "dropout": 0}
    config = models.config_class(task["model"]).model_validate(settings)
    model = models.build(config, dataset.num_items, dataset.window - 1, seed=0)
    step = TrainStep(model, student_loss(options), layout.group).to(runtime.device)
    engine = with_clock(DataParallel, clock)(step, layout, runtime.device)
    found: list[dict[str, float]] = []
    begin = [0.0, 0.0, 0.0, 0.0]

    def stamp() -> list[float]:
        return [time.perf_counter(), time.process_time(), waits.data, waits.ranks]

    class Measured(Trainer):
        """The loop with a stopwatch around its epochs; it writes no checkpoints."""

        def train_epoch(self) -> Any:
            begin[:] = stamp()
            clock.take()
            curve = super().train_epoch()
            total, cpu, data, count = (now - before for now, before in zip(stamp(), begin, strict=True))
            parts = {"data": data, "count": count, **clock.take()}
            parts["rest"] = total - sum(parts.values())
            found.append({"step": total, "cpu": cpu, **parts})
            return curve

        def _save(self) -> None:
            pass

    trainer = Measured(
        engine, dataset, options, 0, lambda _: {"ndcg@10": 0.0}, StageLog("scaling", None, False),
        LabelCache(folder / "labels", dataset),
    )  # fmt: skip
    checkpoints = Checkpoints(folder / "none", {}, layout.group)
    with StopSignals() as signals:
        state = trainer.run(checkpoints, signals)
    alone = reduce_alone(runtime, model)
    steps = [each["step"] for each in state.epochs]
    lengths = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    return [
        {"loss": epoch["loss"], "examples": epoch["num_examples"], "alone_ms": alone, **milliseconds}
        for epoch, milliseconds in zip(state.epochs, over_ranks(runtime, found, lengths, state.epochs), strict=True)
    ][1:]


def over_ranks(
    runtime: Any, found: list[dict[str, float]], lengths: list[int], epochs: list[dict[str, Any]]
) -> list[dict[str, float]]:
    """Each epoch's milliseconds of a step: parts as means over the ranks, processor time as their sum."""
    ranks = runtime.world.gather_objects(found)
    result = []
    for number, (length, epoch) in enumerate(zip(lengths, epochs, strict=True)):
        own = [rank[number] for rank in ranks]
        values = {
            f"{name}_ms": 1e3 * statistics.mean(each.get(name, 0.0) for each in own) / length
            for name in ("step", *PARTS)
        }
        values["cpu_ms"] = 1e3 * sum(each["cpu"] for each in own) / length
        values["examples_per_second"] = epoch["num_examples"] / max(each["step"] for each in own)
        result.append(values)
    return result


def reduce_alone(runtime: Any, model: Any) -> float:
    """Median milliseconds of an all-reduce of as many numbers as the model has, when nothing else is done."""
    import torch

    numbers = torch.zeros(sum(parameter.numel() for parameter in model.parameters()), device=runtime.device)
    seconds = []
    for _ in range(10):
        runtime.world.barrier()
        begin = time.perf_counter()
        runtime.world.all_reduce_sum(numbers)
        seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds)


if __name__ == "__main__":
    main()
