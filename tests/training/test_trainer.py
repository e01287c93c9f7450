"""The training loop: the same gradients, curves and metrics on 1, 2 and 3 ranks, and after being cut off."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from csrec_dist import models
from csrec_dist.config import Config, load_config
from csrec_dist.data.batches import to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.distributed import Runtime
from csrec_dist.distributed.engines import DataParallel
from csrec_dist.errors import UserError
from csrec_dist.files import read_json
from csrec_dist.runs.pipeline import execute, work_on
from csrec_dist.runs.stages import evaluate as evaluating
from csrec_dist.runs.stages.active import ActiveRun
from csrec_dist.training import TrainStep
from csrec_dist.training.limits import Epochs
from csrec_dist.training.step import one_hot, seed_dropout
from tests.helpers.ranks import run_ranks
from tests.helpers.training_streams import at_each_batch

RUN = """
name: small
dataset: {path: %s}
model: {name: %s, width: 16, dropout: 0}
method: model_level
training: {batch_size: 7, max_epochs: 3, learning_rate: 0.01, log_steps: 1}
evaluation: {top_n: [1, 10]}
"""


def small_config(folder: Path, dataset: Path, model: str, *overrides: str, output: Path | str | None = None) -> Config:
    path = folder / "config.yaml"
    path.write_text(RUN % (dataset, model))
    return load_config(path, [f"output={output or folder}", *overrides])


def gradients(rank: int, world_size: int, dataset_folder: str, model_name: str) -> dict[str, Any]:
    """Gradients of one global batch, computed from this rank's share."""
    runtime = Runtime.start()
    dataset = Dataset(dataset_folder)
    config = models.config_class(model_name).model_validate({"name": model_name, "width": 16, "dropout": 0})
    model = models.build(config, dataset.num_items, dataset.window - 1, seed=0)
    layout = runtime.layout([runtime.world.ranks], 1)
    engine = DataParallel(TrainStep(model, one_hot), layout, runtime.device)
    stream = dataset.stream("train", batch_size=7, epoch=0, seed=1, rank=rank, world_size=world_size)
    batch = to_batch(next(iter(stream)))
    loss = engine.forward(model.inputs(batch, seed=3), None)
    engine.backward(loss.sum * (world_size / runtime.world.all_reduce_sum(loss.count.clone())))
    return {name: parameter.grad.tolist() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_do_not_depend_on_the_number_of_ranks(small_dataset: Path) -> None:
    model = "gru4rec"
    alone = run_ranks(gradients, 1, str(small_dataset), model)[0]
    for world_size in (2, 3):
        for found in run_ranks(gradients, world_size, str(small_dataset), model):
            assert found.keys() == alone.keys()
            for name, gradient in alone.items():
                torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(gradient), rtol=1e-4, atol=1e-6)


def test_draws_follow_the_seed_as_torchs_own_do() -> None:
    torch.manual_seed(5)
    expected = torch.rand(8)
    for seed, is_same in ((5, True), (6, False)):
        seed_dropout(seed, torch.device("cpu"))
        assert torch.equal(torch.rand(8), expected) is is_same


def whole_run(rank: int, world_size: int, folder: str, dataset: str, model: str, *overrides: str) -> None:
    runtime = Runtime.start()
    execute(small_config(Path(folder) / str(rank), Path(dataset), model, *overrides, output=folder), runtime)


def curve(run: Path, model: str = "student") -> torch.Tensor:
    epochs = read_json(run / model / "metrics.json")["epochs"]
    return torch.tensor([[e["loss"], e["cross_entropy"], e["divergence"]] for e in epochs])


def test_a_whole_run_is_the_same_on_any_number_of_ranks(small_dataset: Path, tmp_path: Path) -> None:
    runs = {}
    for world_size in (1, 2, 3):
        folder = tmp_path / str(world_size)
        for rank in range(world_size):
            (folder / str(rank)).mkdir(parents=True)
        run_ranks(whole_run, world_size, str(folder), str(small_dataset), "sasrec")
        runs[world_size] = folder / "small"
    alone = runs.pop(1)
    for run in runs.values():
        for trained in ("student", "teachers/teacher-0", "teachers/teacher-1"):
            torch.testing.assert_close(curve(run, trained), curve(alone, trained), rtol=1e-4, atol=1e-4)
        expected, found = read_json(alone / "metrics.json"), read_json(run / "metrics.json")
        assert found["test"] == pytest.approx(expected["test"], abs=1e-6)
        assert found["models"]["teacher-1"]["valid"] == pytest.approx(
            expected["models"]["teacher-1"]["valid"], abs=1e-6
        )
    assert curve(alone)[-1, 0] < curve(alone)[0, 0]


def test_micro_batches_change_nothing(small_dataset: Path, tmp_path: Path) -> None:
    runtime, runs = Runtime.start(), []
    for accumulate in (1, 3):
        folder = tmp_path / str(accumulate)
        folder.mkdir()
        settings = ["method=training_level", "teachers.noise_refresh=2", f"training.accumulate={accumulate}"]
        runs.append(execute(small_config(folder, small_dataset, "gru4rec", *settings), runtime).folder)
    for trained in ("teachers/side", "teachers/main", "student"):
        torch.testing.assert_close(curve(runs[1], trained), curve(runs[0], trained), rtol=1e-5, atol=1e-5)


def exchanges(rank: int, world_size: int, dataset_folder: str) -> tuple[list[int], dict[str, Any]]:
    """How often gradients were exchanged after each of three micro-batches, and the gradients."""
    runtime, dataset = Runtime.start(), Dataset(dataset_folder)
    config = models.config_class("gru4rec").model_validate({"name": "gru4rec", "width": 16, "dropout": 0})
    model = models.build(config, dataset.num_items, dataset.window - 1, seed=0)
    engine = DataParallel(TrainStep(model, one_hot), runtime.layout([runtime.world.ranks], 1), runtime.device)
    num = 0

    def counted(state: None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal num
        num += 1
        return allreduce_hook(runtime.world.handle, bucket)

    engine._wrapped.register_comm_hook(None, counted)
    batch = to_batch(next(iter(dataset.stream("train", batch_size=18, epoch=0, seed=1, rank=rank, world_size=2))))
    found = []
    for number, part in enumerate(batch.split(3)):
        loss = engine.forward(model.inputs(part, seed=3), None, is_last=number == 2)
        engine.backward(loss.sum, is_last=number == 2)
        found.append(num)
    return found, {name: parameter.grad.tolist() for name, parameter in model.named_parameters()}


def test_ranks_exchange_gradients_once_a_step(small_dataset: Path) -> None:
    (numbers, found), (_, other) = run_ranks(exchanges, 2, str(small_dataset))
    assert numbers[0] == numbers[1] == 0
    assert numbers[2] > 0
    assert found == other
    runtime, dataset = Runtime.start(), Dataset(small_dataset)
    config = models.config_class("gru4rec").model_validate({"name": "gru4rec", "width": 16, "dropout": 0})
    model = models.build(config, dataset.num_items, dataset.window - 1, seed=0)
    engine = DataParallel(TrainStep(model, one_hot), runtime.layout([runtime.world.ranks], 1), runtime.device)
    for rank in range(2):
        stream = dataset.stream("train", batch_size=18, epoch=0, seed=1, rank=rank, world_size=2)
        for part in to_batch(next(iter(stream))).split(3):
            engine.backward(engine.forward(model.inputs(part, seed=3), None).sum / 2)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(torch.tensor(found[name]), parameter.grad, rtol=1e-4, atol=1e-5)


def test_a_run_that_is_cut_off_goes_on_bit_for_bit(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    runtime = Runtime.start()
    settings = ["model.dropout=0.3", "method=base", "training.max_epochs=4"]
    settings += ["training.schedule=linear", "training.warmup_steps=3"]
    whole = execute(small_config(tmp_path / "whole", small_dataset, "sasrec", *settings), runtime).folder
    config = small_config(tmp_path / "cut", small_dataset, "sasrec", *settings)
    evaluations = 0

    def evaluate_twice(*arguments: Any, **options: Any) -> dict[str, float]:
        nonlocal evaluations
        evaluations += 1
        if evaluations == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    real = evaluating.evaluate
    monkeypatch.setattr(evaluating, "evaluate", evaluate_twice)
    with pytest.raises(KeyboardInterrupt):
        execute(config, runtime)
    monkeypatch.undo()
    cut = execute(config, runtime).folder
    assert (cut / "student/model.safetensors").read_bytes() == (whole / "student/model.safetensors").read_bytes()
    torch.testing.assert_close(curve(cut), curve(whole), rtol=0, atol=0)


def test_who_follows_the_epochs_is_told_all_of_them_and_may_end_the_training(
    small_dataset: Path, tmp_path: Path
) -> None:
    """After the checkpoint of the epoch is begun: the next start goes on from there."""
    runtime, told = Runtime.start(), []

    class EndedError(Exception):
        pass

    def follow(stage: str, epochs: Epochs) -> None:
        told.append((stage, [epoch["epoch"] for epoch in epochs]))
        if told[-1] == ("distill", [0, 1]):
            raise EndedError

    for name in ("whole", "ended"):
        (tmp_path / name).mkdir()
    whole = execute(small_config(tmp_path / "whole", small_dataset, "gru4rec"), runtime).folder
    config = small_config(tmp_path / "ended", small_dataset, "gru4rec")
    run = ActiveRun(config, runtime)
    run.after_epoch = follow
    with pytest.raises(EndedError):
        work_on(run)
    members = [(f"teach/teacher-{k}", list(range(last + 1))) for k in range(2) for last in range(3)]
    assert told == [*members, ("distill", [0]), ("distill", [0, 1])]
    with at_each_batch(lambda: None) as begun:
        ended = execute(config, runtime).folder
    assert begun == [(2, 0)]
    assert (ended / "student/model.safetensors").read_bytes() == (whole / "student/model.safetensors").read_bytes()


def test_a_finished_run_is_not_done_again_and_other_inputs_are_refused(small_dataset: Path, tmp_path: Path) -> None:
    runtime = Runtime.start()
    folder = execute(small_config(tmp_path, small_dataset, "gru4rec"), runtime).folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    execute(small_config(tmp_path, small_dataset, "gru4rec"), runtime)
    with pytest.raises(UserError, match=r"training.beta was 0.5, is 0.25.*--restart distill"):
        execute(small_config(tmp_path, small_dataset, "gru4rec", "training.beta=0.25"), runtime)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before
    execute(small_config(tmp_path, small_dataset, "gru4rec", "training.beta=0.25"), runtime, restart="distill")
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    changed = {path.relative_to(folder).parts[0] for path in before if after.get(path) != before[path]}
    assert changed == {"student", "checkpoints"}


def test_pretrained_members_are_taken_and_foreign_ones_refused(small_dataset: Path, tmp_path: Path) -> None:
    runtime = Runtime.start()
    base = execute(small_config(tmp_path, small_dataset, "gru4rec", "method=base", "name=base"), runtime).folder
    taken = f"teachers.pretrained=[{base / 'student'}]"
    run = execute(small_config(tmp_path, small_dataset, "sasrec", taken), runtime).folder
    weights = "model.safetensors"
    assert (run / "teachers/teacher-0" / weights).read_bytes() == (base / "student" / weights).read_bytes()
    foreign = models.build(models.config_class("gru4rec").model_validate({}), 3, 7, seed=0)
    foreign.save_pretrained(tmp_path / "foreign")
    taken = f"teachers.pretrained=[{tmp_path / 'foreign'}]"
    config = small_config(tmp_path, small_dataset, "sasrec", "name=other", taken)
    with pytest.raises(UserError, match="knows 3 items"):
        execute(config, runtime)


def test_members_are_joined_by_place_only_if_their_user_vouches_for_it(
    small_dataset: Path, small_log: Path, tmp_path: Path
) -> None:
    """A foreign table of as many items, and one trained on the same items under other numbers."""
    turned, runtime = tmp_path / "turned", Runtime.start()
    header, *lines = small_log.read_text().splitlines()
    (tmp_path / "turned.csv").write_text("\n".join([header, *lines[::-1]]) + "\n")
    prepare(DatasetOptions(source=str(tmp_path / "turned.csv"), min_interactions=3, window=8, num_shards=5), turned)
    base = execute(small_config(tmp_path, turned, "gru4rec", "method=base"), runtime).folder
    foreign = models.load(base / "student")
    assert foreign.num_items == Dataset(small_dataset).num_items
    foreign.save_pretrained(tmp_path / "foreign")
    for number, (folder, message) in enumerate(
        [(tmp_path / "foreign", "does not say which item each row of its table is"), (base / "student", "other items")]
    ):
        settings = [f"teachers.pretrained=[{folder}]", f"name=run-{number}"]
        with pytest.raises(UserError, match=rf"{message}.*teachers\.trust_item_order: true"):
            execute(small_config(tmp_path, small_dataset, "sasrec", *settings), runtime)
        assert not (tmp_path / f"run-{number}" / "teachers" / "teacher-0").exists()
        trusting = small_config(tmp_path, small_dataset, "sasrec", *settings, "teachers.trust_item_order=true")
        taken = execute(trusting, runtime, ["prepare", "teach"]).folder / "teachers/teacher-0"
        assert (taken / "model.safetensors").read_bytes() == (base / "student/model.safetensors").read_bytes()
        assert read_json(taken / "metrics.json")["id_map"] == Dataset(small_dataset).id_map_fingerprint


@pytest.mark.parametrize("wanted", [True, False])
def test_the_config_decides_whether_sums_are_taken_in_order(small_dataset: Path, tmp_path: Path, wanted: bool) -> None:
    settings = [f"distributed.deterministic={str(wanted).lower()}", "method=base", "training.max_epochs=1"]
    config, modes = small_config(tmp_path, small_dataset, "gru4rec", *settings), set()

    def note() -> None:
        modes.add((torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()))

    with at_each_batch(note):
        execute(config, Runtime.start())
    assert modes == {(wanted, False)}
