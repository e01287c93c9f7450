"""Engines on real ranks against one process: curves, checkpoints, lists, members side by side, and what really runs."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from csrec_dist import models
from csrec_dist.config import Config, parse_config
from csrec_dist.config.schema import impossible_engine
from csrec_dist.data.batches import to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed import Runtime, copies
from csrec_dist.distributed.engines import base, check
from csrec_dist.distributed.engines import deepspeed as zero_settings
from csrec_dist.distributed.options import DistributedOptions
from csrec_dist.errors import UserError
from csrec_dist.files import read_json
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.run import Run
from csrec_dist.training.checkpoints import StoredState
from tests.helpers.ranks import run_ranks
from tests.helpers.training_streams import at_each_batch

SETTINGS = Path(__file__).resolve().parents[2] / "configs/deepspeed"
ZERO = [f"zero{stage}" for stage in (1, 2, 3)]
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
ENGINES = ["ddp", "fsdp", *ZERO]
MARKED = ["ddp", "fsdp", *(pytest.param(name, marks=needs_deepspeed) for name in ZERO)]
BF16 = {"precision": "bf16", "max_steps": 5}

Job = tuple[str, str, int | None, dict[str, Any]]
"""Name of a run, its engine, the steps after which it is cut off, and what its config has changed."""


class CutOffError(Exception):
    pass


def options_of(engine: str) -> dict[str, Any]:
    if engine not in ZERO:
        return {"engine": engine}
    return {"engine": "deepspeed", "deepspeed": str(SETTINGS / f"{engine}.json")}


def config_of(folder: str, dataset: str, name: str, engine: str, changes: dict[str, Any]) -> Config:
    """A student of some thirty steps, in two micro-batches each, half of them with gradients above the limit."""
    training = {"batch_size": 7, "max_epochs": 3, "learning_rate": 0.02, "schedule": "cosine", "log_steps": 1}
    values: dict[str, Any] = {
        "name": name,
        "output": folder,
        "dataset": {"path": dataset},
        "model": {"name": "sasrec", "width": 16, "dropout": 0},
        "method": "base",
        "training": training | {"accumulate": 2, "clip_norm": 1.1, "checkpoint_steps": 4},
        "distributed": options_of(engine),
    }
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(values.get(key), dict) else value
    return parse_config(values)


@contextmanager
def cut_off_after(steps: int | None) -> Iterator[list[tuple[int, int]]]:
    """End the training in the block after so many steps, if any; gives where each stream of batches begins."""
    left = steps

    def count() -> None:
        nonlocal left
        if left == 0:
            raise CutOffError
        left = None if left is None else left - 1

    with at_each_batch(count) as begun, nullcontext() if steps is None else pytest.raises(CutOffError):
        yield begun


def train(rank: int, world_size: int, folder: str, dataset: str, jobs: list[Job]) -> list[tuple[str, int, int]]:
    """Do some runs one after the other in the same processes; the name, epoch and step that each begins at."""
    runtime = Runtime.start()
    # Tensors that all ranks hold are dealt out in checkpoints, and layers are gathered by themselves, large or not.
    with patch.object(base, "FEWEST_CUT", 64), patch.object(copies, "WIDE_LAYER", 64):
        return [done(runtime, folder, dataset, *job) for job in jobs]


def done(
    runtime: Runtime, folder: str, dataset: str, name: str, engine: str, steps: int | None, changes: dict[str, Any]
) -> tuple[str, int, int]:
    """Do a run, to its end or for so many steps; the name, epoch and step that it begins at."""
    config = config_of(folder, dataset, name, engine, changes)
    stages = ["prepare", *(["teach", "label"] if config.num_members else []), "distill"]
    with cut_off_after(steps) as begun:
        execute(config, runtime, stages)
    if steps is not None and runtime.is_main:
        newest = max((Run.of(config).folder / "checkpoints/distill").glob("step-*"))
        shutil.copytree(newest, Run.of(config).folder / "cut_off", dirs_exist_ok=True)
    return (name, *begun[0])


def available(engines: list[str]) -> list[str]:
    return [name for name in engines if name not in ZERO or find_spec("deepspeed")]


TEACH = {"method": "model_level", "training": {"max_epochs": 2}}
LEAN = {
    "method": "training_level",
    "teachers": {"noise_rank": 4, "noise_refresh": 3},
    "training": {"max_epochs": 2},
}


DENSE = TEACH | {"labels": {"form": "dense", "dtype": "float32"}, "teachers": {"num": 1}}
APART = {"distributed": {"catalog_parallel": 2}}
"""Slices of the tables beside a sharded encoder."""


@pytest.fixture(scope="module")
def alone(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process."""
    folder = tmp_path_factory.mktemp("alone")
    jobs: list[Job] = [
        ("base", "ddp", 9, {}),
        ("base", "ddp", None, {}),
        ("teach", "ddp", None, TEACH),
        ("lean", "ddp", None, LEAN),
        ("dense", "ddp", None, DENSE),
        ("bf16", "ddp", None, {"training": BF16}),
    ]
    train(0, 1, str(folder), str(small_dataset), jobs)
    return folder


Begins = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def begins_together(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Begins, Path]:
    """The runs of two ranks, where each student is cut off and goes on; then one that three ranks and one finish."""
    folder = tmp_path_factory.mktemp("together")
    jobs: list[Job] = []
    for engine in available(ENGINES):
        jobs += [(engine, engine, 9, {}), (engine, engine, None, {})]
    jobs += [(f"bf16-{engine}", engine, None, {"training": BF16}) for engine in available(["fsdp", "zero2"])]
    jobs += [
        ("lean", "fsdp", None, LEAN),
        ("dense", "fsdp", None, DENSE),
        ("apart", "fsdp", 9, APART),
        ("apart", "fsdp", None, APART),
    ]
    jobs += [("chain", engine, 5, {}) for engine in available(["fsdp", "zero3"])]
    begins = run_ranks(train, 2, str(folder), str(small_dataset), jobs, timeout=400)[0]
    jobs = [("chain", engine, 5, {}) for engine in available(["zero1", "fsdp"])]
    in_place = {**TEACH, "distributed": {"reassign": False}}
    for engine in available(["fsdp", "zero2"]):
        jobs += [(f"teach-{engine}", engine, None, in_place), (f"team-{engine}", engine, None, TEACH)]
    begins += run_ranks(train, 3, str(folder), str(small_dataset), jobs, timeout=400)[0]
    jobs = [("apart-lean", "fsdp", None, LEAN | APART), ("apart-teach", "fsdp", None, TEACH | APART)]
    begins += run_ranks(train, 4, str(folder), str(small_dataset), jobs, timeout=400)[0]
    return begins + train(0, 1, str(folder), str(small_dataset), [("chain", "ddp", None, {})]), folder


@pytest.fixture(scope="module")
def together(begins_together: tuple[Begins, Path]) -> Path:
    return begins_together[1]


def begins_of(begins_together: tuple[Begins, Path], run: str) -> list[tuple[int, int]]:
    return [(epoch, step) for name, epoch, step in begins_together[0] if name == run]


def metrics(folder: Path, name: str, model: str = "student") -> dict[str, Any]:
    return read_json(folder / name / model / "metrics.json")


def curve(folder: Path, name: str, model: str = "student") -> torch.Tensor:
    epochs = metrics(folder, name, model)["epochs"]
    return torch.tensor([[e["loss"], e["cross_entropy"], e["divergence"], e["step"]] for e in epochs])


def assert_same_curve(folder: Path, name: str, alone: Path, expected: str, model: str = "student") -> None:
    torch.testing.assert_close(curve(folder, name, model), curve(alone, expected, model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("engine", MARKED)
def test_two_ranks_cut_off_and_resumed_train_as_one_process(
    engine: str, alone: Path, begins_together: tuple[Begins, Path]
) -> None:
    assert curve(alone, "base")[-1, 3] >= 24, "some dozens of steps"
    assert_same_curve(begins_together[1], engine, alone, "base")
    assert begins_of(begins_together, engine) == [(0, 0), (0, 8)]


@pytest.mark.parametrize("engine", MARKED)
def test_a_checkpoint_holds_the_moments_of_the_summed_gradients(engine: str, alone: Path, together: Path) -> None:
    """Adam's curve alone would hide a factor on the gradients."""
    expected = load_file(alone / "base/cut_off/optimizer.safetensors")
    saved = StoredState(together / engine / "cut_off")
    assert set(saved.names("optimizer")) == expected.keys()
    for name, tensor in expected.items():
        found = torch.full_like(tensor, torch.nan)
        saved.copy("optimizer", name, found.view(-1))
        torch.testing.assert_close(found, tensor, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("engine", MARKED)
def test_a_run_says_which_engine_trained_on_which_ranks(engine: str, alone: Path, together: Path) -> None:
    record = {"engine": options_of(engine)["engine"], "ranks": [0, 1], "catalog_parallel": 1}
    stage = {"zero_stage": int(engine[-1])} if engine in ZERO else {}
    assert metrics(together, engine)["trained_by"] == record | stage
    assert metrics(alone, "base")["trained_by"] == {"engine": "plain", "ranks": [0], "catalog_parallel": 1}


@pytest.mark.parametrize("engine", MARKED)
def test_what_is_exported_gives_the_same_lists(engine: str, alone: Path, together: Path, small_dataset: Path) -> None:
    dataset = Dataset(small_dataset)
    batches = list(map(to_batch, dataset.stream("test", batch_size=64)))
    expected, found = (models.load(folder / "student") for folder in (alone / "base", together / engine))
    with torch.no_grad():
        for batch in batches:
            scores = expected.eval().score(batch.histories)
            of_list, items = scores.topk(5)
            other = found.eval().score(batch.histories).topk(5).indices
            same = (items == other) | torch.isclose(of_list, scores.gather(1, other), rtol=0, atol=1e-4)
            assert same.all(), "ties aside"


def test_a_checkpoint_of_any_engine_is_read_by_any_other_at_any_number_of_ranks(
    alone: Path, begins_together: tuple[Begins, Path]
) -> None:
    assert_same_curve(begins_together[1], "chain", alone, "base")
    begun = begins_of(begins_together, "chain")
    assert len(begun) == len(set(begun)) == 1 + len(available(["fsdp", "zero3", "zero1", "fsdp"]))
    assert begun == sorted(begun)


@pytest.mark.parametrize("engine", [MARKED[1], MARKED[3]])
def test_members_side_by_side_in_groups_of_one_and_two_stay_apart(engine: Any, alone: Path, together: Path) -> None:
    name = f"teach-{engine}"
    for model in ("teachers/teacher-0", "teachers/teacher-1", "student"):
        assert_same_curve(together, name, alone, "teach", model)
    trained = [metrics(together, name, f"teachers/teacher-{k}")["trained_by"] for k in range(2)]
    assert [each["ranks"] for each in trained] == [[0], [1, 2]]
    assert [each["engine"] for each in trained] == ["plain", options_of(engine)["engine"]]


@pytest.mark.parametrize("engine", [MARKED[1], MARKED[3]])
def test_a_team_that_changes_goes_on_with_its_engine(engine: Any, alone: Path, together: Path) -> None:
    name = f"team-{engine}"
    for model in ("teachers/teacher-0", "teachers/teacher-1", "student"):
        assert_same_curve(together, name, alone, "teach", model)
    trained = [metrics(together, name, f"teachers/teacher-{k}")["trained_by"] for k in range(2)]
    assert trained[0]["ranks"] in ([0], [0, 1, 2])
    assert trained[1]["ranks"] in ([1, 2], [0, 1, 2])


def test_dense_labels_of_sharded_tables_are_those_of_one_process(alone: Path, together: Path) -> None:
    def logits(folder: Path) -> torch.Tensor:
        files = sorted((folder / "dense/labels").glob("labels-*.safetensors"))
        return torch.cat([load_file(file)["logits"] for file in files])

    torch.testing.assert_close(logits(together), logits(alone), rtol=0, atol=1e-3)
    for model in ("teachers/teacher-0", "student"):
        assert_same_curve(together, "dense", alone, "dense", model)


def test_an_objective_with_parameters_and_buffers_is_sharded_too(alone: Path, together: Path) -> None:
    for model in ("teachers/side", "teachers/main", "student"):
        assert_same_curve(together, "lean", alone, "lean", model)


def test_slices_of_tables_and_a_sharded_encoder_train_as_one_process(
    alone: Path, begins_together: tuple[Begins, Path]
) -> None:
    """On 1 × 2 ranks (data × catalog), cut off and resumed; on 2 × 2, with a loss that has slices of its own."""
    together = begins_together[1]
    assert_same_curve(together, "apart", alone, "base")
    assert begins_of(begins_together, "apart") == [(0, 0), (0, 8)]
    for name, models_of in (("lean", ("side", "main")), ("teach", ("teacher-0", "teacher-1"))):
        for model in (*(f"teachers/{each}" for each in models_of), "student"):
            assert_same_curve(together, f"apart-{name}", alone, name, model)
    record = {"engine": "fsdp", "ranks": [0, 1, 2, 3], "catalog_parallel": 2}
    assert metrics(together, "apart-lean")["trained_by"] == record


@pytest.mark.parametrize("engine", [MARKED[1], MARKED[3]])
def test_bf16_is_the_same_arithmetic_under_each_engine(engine: Any, alone: Path, together: Path) -> None:
    found, expected = curve(together, f"bf16-{engine}"), curve(alone, "bf16")
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert not torch.equal(expected[:1, 0], curve(alone, "base")[:1, 0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "deepspeed"}, "engine deepspeed needs a file, such as `csrec-dist init zero2` writes"),
        ({"engine": "fsdp", "deepspeed": "x.json"}, "engine fsdp does not read it"),
        (
            {"engine": "deepspeed", "deepspeed": "x.json", "catalog_parallel": 4},
            "use engine fsdp or ddp with 4, or catalog_parallel 1 with engine deepspeed",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_does(options: dict[str, Any], words: str) -> None:
    (problem,) = impossible_engine(DistributedOptions.model_construct(**options))
    assert words in problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "has the ZeRO stage None"),
        ('{"zero_optimization": {"stage": 0}}', "has the ZeRO stage 0; set zero_optimization.stage to 1, 2 or 3"),
        ("{", "is not valid JSON"),
        (None, "does not exist"),
        (
            '{"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}, "gradient_clipping": 1.0}',
            "sets gradient_clipping: training.clip_norm decides it; optimizer: it is Adam with training.learning_rate",
        ),
        (
            '{"zero_optimization": {"stage": 1}, "communication_data_type": "fp16"}',
            "sets communication_data_type: gradients are averaged in fp32",
        ),
        (
            '{"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "bf16"}}',
            "sets data_types: gradients are summed in fp32",
        ),
    ],
)
@needs_deepspeed
def test_wrong_settings_of_deepspeed_are_refused(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"^distributed\.deepspeed: ") as caught:
        check(DistributedOptions(engine="deepspeed", deepspeed=str(path)))
    assert words in str(caught.value)


def test_a_missing_deepspeed_is_said_with_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_settings, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed.*pip install deepspeed.*engine=fsdp"):
        check(DistributedOptions(engine="deepspeed", deepspeed=str(SETTINGS / "zero1.json")))
    check(DistributedOptions(engine="fsdp"))


def test_what_settings_leave_to_others_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    zero = {"stage": 2, "reduce_bucket_size": "auto", "overlap_comm": True}
    auto = {"train_batch_size": "auto", "bf16": {"enabled": "auto"}, "optimizer": {"params": {"lr": "auto"}}}
    path.write_text(json.dumps({"zero_optimization": zero, "steps_per_print": 5, **auto}))
    expected = {"zero_optimization": {"stage": 2, "overlap_comm": True}, "steps_per_print": 5}
    assert zero_settings.read_settings(path) == expected
