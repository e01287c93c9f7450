"""Whole runs with the catalog split over ranks: the numbers of one process, at every layout of data × catalog."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from csrec_dist import models
from csrec_dist.config import load_config
from csrec_dist.distributed import Group, Runtime
from csrec_dist.distributed.groups import ALONE
from csrec_dist.errors import UserError
from csrec_dist.files import read_json, write_json
from csrec_dist.runs.pipeline import execute
from tests.helpers.ranks import run_ranks

RUN = """
name: small
dataset: {path: %s}
training: {batch_size: 7, max_epochs: 2, learning_rate: 0.01, log_steps: 1, checkpoint_steps: 3}
evaluation: {top_n: [1, 10], exclude_seen: true}
"""
LAYOUTS = [(2, 1), (2, 2), (4, 2), (3, 1), (3, 3)]
"""(ranks, catalog_parallel); the oracle is one rank."""

RUNS = {
    "gru4rec": ["model={name: gru4rec, width: 16, dropout: 0}", "method=model_level"],
    "bert4rec": ["model={name: bert4rec, width: 16, dropout: 0}", "method=training_level", "teachers.noise_rank=4"],
}
ALWAYS = [("gru4rec", (4, 2)), ("bert4rec", (3, 3))]
MEMBERS = {"gru4rec": ["teacher-0", "teacher-1"], "bert4rec": ["side", "main"]}


def whole_run(rank: int, world_size: int, dataset: str, output: str, overrides: list[str]) -> None:
    """A run on all ranks."""
    path = Path(output) / f"config-{rank}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(RUN % dataset)
    execute(load_config(path, [f"output={output}", *overrides]), Runtime.start())


@pytest.fixture(scope="module")
def alone(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs of one rank."""
    folders = {}
    for name, overrides in RUNS.items():
        output = tmp_path_factory.mktemp(name)
        run_ranks(whole_run, 1, str(small_dataset), str(output), overrides)
        folders[name] = output / "small"
    return folders


@pytest.mark.parametrize(
    ("name", "world_size", "catalog_parallel"),
    [
        pytest.param(name, *layout, marks=[] if (name, layout) in ALWAYS else pytest.mark.long)
        for name in RUNS
        for layout in LAYOUTS
    ],
)
def test_a_run_is_the_same_at_every_layout(
    small_dataset: Path, alone: dict[str, Path], tmp_path: Path, name: str, world_size: int, catalog_parallel: int
) -> None:
    overrides = [*RUNS[name], f"distributed.catalog_parallel={catalog_parallel}"]
    run_ranks(whole_run, world_size, str(small_dataset), str(tmp_path), overrides)
    run, expected = tmp_path / "small", alone[name]
    for folder in ("student", *(f"teachers/{member}" for member in MEMBERS[name])):
        same_training(run / folder, expected / folder)
    found, wanted = read_json(run / "metrics.json"), read_json(expected / "metrics.json")
    for part in ("test", "valid", "groups", "lists", "calibration", "diversity", "models"):
        assert_close(found.get(part), wanted.get(part))
    assert read_json(run / "student/metrics.json")["trained_by"]["catalog_parallel"] == catalog_parallel
    assert len(list((run / "checkpoints/distill").iterdir())) == 1, "the last one is kept"


OTHERS = {
    "sasrec": ["method=softrec"],
    "nextitnet": ["method=data_level", "teachers.sample=0.7"],
    "narm": ["method=model_level", "labels.combine=prob_mean"],
    "srgnn": ["method=training_level", "teachers.noise_rank=4", "teachers.noise_maximum=norm"],
    "cl4srec": ["method=data_level"],
    "dreamrec": ["method=model_level", "labels.combine=weighted", "labels.weights=[0.75, 0.25]"],
}


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_model_and_method_is_the_same_in_slices(small_dataset: Path, tmp_path: Path, name: str) -> None:
    dropouts = "state_dropout: 0, " if name == "narm" else ""
    settings = [f"model={{name: {name}, {dropouts}width: 16, dropout: 0}}", *OTHERS[name], "training.max_epochs=1"]
    run_ranks(whole_run, 1, str(small_dataset), str(tmp_path / "alone"), settings)
    sliced = [*settings, "distributed.catalog_parallel=2"]
    run_ranks(whole_run, 2, str(small_dataset), str(tmp_path / "sliced"), sliced)
    run, expected = (tmp_path / folder / "small" for folder in ("sliced", "alone"))
    for folder in [expected / "student", *expected.glob("teachers/*")]:
        same_training(run / folder.relative_to(expected), folder)
    assert_close(read_json(run / "metrics.json")["test"], read_json(expected / "metrics.json")["test"])


def test_a_model_in_several_files_is_the_model(small_dataset: Path, alone: dict[str, Path], tmp_path: Path) -> None:
    overrides = [*RUNS["gru4rec"], "distributed.catalog_parallel=3", "distributed.export=sharded"]
    run_ranks(whole_run, 3, str(small_dataset), str(tmp_path), overrides)
    student, expected = tmp_path / "small/student", models.load(alone["gru4rec"] / "student")
    files = [f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]
    assert sorted(path.name for path in student.glob("model*")) == sorted([*files, "model.safetensors.index.json"])
    table = expected.item_table.weight.detach()
    for file, items in zip(files, torch.arange(len(table)).chunk(3), strict=True):
        rows = load_file(student / file)[f"item_table.weight[{items[0]}:{items[-1] + 1}]"]
        torch.testing.assert_close(rows, table[items], rtol=1e-3, atol=2e-4)
    for name, weight in models.load(student).state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name], rtol=1e-3, atol=2e-4)
    slices = [models.load(student, Group((0, 1), rank)) for rank in (0, 1)]
    torch.testing.assert_close(
        torch.cat([model.item_table.weight for model in slices]), models.load(student).item_table.weight, rtol=0, atol=0
    )
    assert read_json(tmp_path / "small/metrics.json")["test"] == pytest.approx(
        read_json(alone["gru4rec"] / "metrics.json")["test"], abs=1e-4
    )
    write_json(student / "config.json", read_json(student / "config.json") | {"max_length": 5})
    for group in (ALONE, Group((0, 1), 1)):
        with pytest.raises(UserError, match="was saved with another config"):
            models.load(student, group)


def same_training(found: Path, expected: Path) -> None:
    """Loss curve and weights of two trained models agree."""
    parts = ("loss", "cross_entropy", "divergence")
    curves = [
        [[epoch[part] for part in parts] for epoch in read_json(folder / "metrics.json")["epochs"]]
        for folder in (found, expected)
    ]
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-4, atol=1e-4)
    weights = load_file(found / "model.safetensors")
    for weight, wanted in load_file(expected / "model.safetensors").items():
        torch.testing.assert_close(seen(weight, weights[weight]), seen(weight, wanted), rtol=1e-3, atol=2e-4)


def seen(name: str, weight: torch.Tensor) -> torch.Tensor:
    """What a loss depends on: not on the keys' bias, whose gradient is rounding, of which Adam makes whole steps."""
    if not name.endswith("query_key_value.bias"):
        return weight
    query, _, value = weight.chunk(3)
    return torch.cat([query, value])


def assert_close(found: Any, wanted: Any) -> None:
    """Equal JSON, floats to 1e-4."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        pairs = ((found[key], wanted[key]) for key in wanted)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        pairs = zip(found, wanted, strict=True)
    else:
        assert found == (pytest.approx(wanted, abs=1e-4, rel=1e-4) if isinstance(wanted, float) else wanted)
        return
    for one, other in pairs:
        assert_close(one, other)


def test_a_size_that_does_not_divide_the_ranks_is_refused_before_any_work(small_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 slices of the catalog do not fit 1 ranks"):
        whole_run(0, 1, str(small_dataset), str(tmp_path), [*RUNS["gru4rec"], "distributed.catalog_parallel=2"])
    assert not list(itertools.chain(tmp_path.glob("small/*/*")))
