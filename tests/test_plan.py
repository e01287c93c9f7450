"""The plan says beforehand what the run's parts then do: layout, steps, bytes."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from csrec_dist import models
from csrec_dist.config import Config, load_config
from csrec_dist.data.dataset import Dataset
from csrec_dist.errors import UserError
from csrec_dist.labels import info
from csrec_dist.plan import mebibytes, plan_rows, print_plan
from csrec_dist.runs.run import Run
from tests.helpers.run_folders import make_config, make_run, model_names, stage_names


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("plan"), training={"batch_size": 5, "max_epochs": 4})


def values(config: Config, world_size: int = 1) -> dict[str, list[str]]:
    """The plan's values by section and name."""
    found: dict[str, list[str]] = {}
    for row in plan_rows(config, world_size):
        found.setdefault(f"{row.section}: {row.what}", []).append(row.value)
    return found


def config_of(run: Path, *overrides: str) -> Config:
    return load_config(run / "config.yaml", overrides)


def test_stages_are_to_do_before_and_done_after(run: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path)
    before, after = values(config), values(config_of(run))
    for stage in stage_names(config):
        assert before[f"run: {stage}"] == ["to do"]
        assert after[f"run: {stage}"] == ["done"]
    assert not Run.of(config).folder.exists(), "planning writes nothing"


def test_an_unprepared_dataset_is_named_by_its_source(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    found = values(config, 2)
    assert found["dataset: not prepared yet"] == [f"source {config.dataset.source}"]
    assert not any(name.startswith("bytes") for name in found)


def test_changed_settings_are_named(run: Path) -> None:
    found = values(config_of(run, "training.beta=0.75"))
    assert found["run: changed since the run began"] == ["training.beta: was 0.5, is 0.75"]
    assert "run: changed since the run began" not in values(config_of(run))


def test_members_beyond_the_ranks_follow_or_have_rounds(run: Path) -> None:
    three = config_of(run, "teachers.num=3")
    follows = "teacher-0 on rank 0; teacher-1 on rank 1; teacher-2 on the first free ranks"
    assert values(three, 2)["ranks: teach, round 1"] == [follows]
    kept = values(config_of(run, "teachers.num=3", "distributed.reassign=false"), 2)
    assert kept["ranks: teach, round 2"] == ["teacher-2 on ranks 0 to 1"]


@pytest.mark.parametrize(
    ("world_size", "teach", "label"),
    [
        (1, [["teacher-0 on rank 0"], ["teacher-1 on rank 0"]], ["rank 0: teacher-0, teacher-1"]),
        (2, [["teacher-0 on rank 0; teacher-1 on rank 1"]], ["rank 0: teacher-0; rank 1: teacher-1"]),
        (
            3,
            [["teacher-0 on rank 0; teacher-1 on ranks 1 to 2"]],
            ["rank 0: teacher-0; rank 1: teacher-1", "rank 2: teacher-0, teacher-1"],
        ),
    ],
)
def test_members_are_laid_out_on_ranks(run: Path, world_size: int, teach: list[list[str]], label: list[str]) -> None:
    found = values(config_of(run), world_size)
    assert [found[f"ranks: teach, round {number}"] for number in range(1, len(teach) + 1)] == teach
    assert found["ranks: label"] == label
    assert found["ranks: student"] == [f"on all {world_size}"]


def test_steps_follow_the_longest_shard(run: Path) -> None:
    shard_rows = json.loads((run / "dataset" / "dataset.json").read_text())["splits"]["train"]["shard_rows"]
    steps = next(n for n in range(10**6) if n * 5 >= max(shard_rows) * len(shard_rows))
    found = values(config_of(run))
    assert found["steps: steps per epoch"] == [str(steps)]
    assert found["steps: maximum number of steps"] == [f"{4 * steps} for each model"]
    assert values(config_of(run, "training.max_steps=3"))["steps: maximum number of steps"] == ["3 for each model"]


def test_bytes_are_those_of_the_trained_models_and_written_labels(run: Path) -> None:
    found = values(config_of(run))
    student = models.load(run / "student")
    size = sum(parameter.numel() * parameter.element_size() for parameter in student.parameters())
    assert found["bytes: student"][0].startswith(f"{mebibytes(size)} ({mebibytes(student.item_table.weight.nbytes)} ")
    written = info(run / "labels")
    numbers = (2 * written["num_examples"] + 4 * written["num_items"]) * 2 * student.config.width
    assert found["bytes: soft labels, factored (used)"] == [mebibytes(numbers)]
    assert numbers < written["bytes"], "headers come on top"
    assert found["bytes: soft labels, dense"] == [mebibytes(written["dense_bytes"] / 2)]


def test_pretrained_members_count_with_their_own_sizes(run: Path, tmp_path: Path) -> None:
    folders = [run / "teachers" / "teacher-0", run / "student", run / "base"]
    taken = f"teachers.pretrained={json.dumps([str(folder) for folder in folders])}"
    config = config_of(run, taken, "teachers.num=3", "model.width=64")
    found = values(config)
    assert found["ranks: teach"] == ["members are pretrained"]
    teacher = models.load(folders[2])
    size = sum(parameter.nbytes for parameter in teacher.parameters())
    assert found["bytes: teacher-2"][0].startswith(mebibytes(size))


def test_method_base_has_no_teachers(tmp_path: Path) -> None:
    run = make_run(tmp_path, method="base")
    config = config_of(run)
    assert model_names(config) == ["student"]
    found = values(config)
    assert not any("teach" in name or "label" in name for name in found)


def test_impossible_numbers_of_processes_are_refused(run: Path) -> None:
    with pytest.raises(UserError, match="4 processes share 3 shards"):
        plan_rows(config_of(run), 4)
    with pytest.raises(UserError, match="must be at least 1"):
        plan_rows(config_of(run), 0)


def test_the_table_shows_every_row(run: Path) -> None:
    console = Console(width=160, file=io.StringIO())
    print_plan(config_of(run), 2, console)
    text = console.file.getvalue()
    for row in plan_rows(config_of(run), 2):
        assert row.what in text
        assert row.value.split(",")[0] in text


def memory(config: Config, world_size: int) -> dict[str, tuple[float, float]]:
    """MiB on a rank's device and in its host's memory, by engine; that of the run is marked."""
    found = {}
    for name, texts in values(config, world_size).items():
        engine = name.removeprefix("bytes: memory per rank, ")
        if engine not in (name, "besides"):
            device, host = (float(part.split(" MiB")[0].replace(",", "")) for part in texts[0].split(" device, "))
            found[engine] = device, host
    return found


def test_memory_is_told_for_each_engine(run: Path) -> None:
    config = config_of(run, "model.width=256", "labels.form=factored", "distributed.engine=fsdp")
    dataset = Dataset(run / "dataset")
    model = models.build(config.model, dataset.num_items, dataset.window - 1, 0)
    size = sum(parameter.nbytes for parameter in model.parameters()) / 2**20
    labels = 2 * model.item_table.weight.nbytes / 2**20
    # On two ranks a teacher has one of them, for which no engine does anything.
    teacher = (5 * size, 4 * size)
    student = {"ddp": 6, "fsdp (used)": 1.5 + 3, "zero1": 2.5 + 2, "zero2": 2.5 + 2, "zero3": 2 + 4}
    expected = {engine: (max(copies * size + labels, teacher[0]), teacher[1]) for engine, copies in student.items()}
    found = memory(config, 2)
    assert found.keys() == expected.keys()
    for engine, sizes in expected.items():
        assert found[engine] == pytest.approx(sizes, abs=0.06), engine
    assert memory(config, 1)["zero3"] == pytest.approx((5 * size + labels, 4 * size), abs=0.06)


def test_a_main_teacher_trains_a_noise_matrix_beside_the_table_of_its_side_teacher(run: Path) -> None:
    def held(*settings: str) -> tuple[float, float]:
        return memory(config_of(run, "method=training_level", "labels.form=factored", *settings), 1)["ddp (used)"]

    table = Dataset(run / "dataset").num_items * 4 / 2**20
    wide = ["model.width=8192", "teachers.noise_rank=1024"]
    plain = config_of(run, "model.width=8192", "method=base", "baseline=false")
    alone, _ = memory(plain, 1)["ddp (used)"]
    without, host = held(*wide, "teachers.expectation=false")
    assert without - alone == pytest.approx(8192 * table, abs=0.1), "one table of labels, for main teacher and student"
    device, with_noise = held(*wide)
    assert device - without == pytest.approx(5 * 2 * 1024 * table, abs=0.1)
    assert with_noise - host == pytest.approx(4 * 2 * 1024 * table, abs=0.1)


def test_a_slice_of_the_catalog_takes_its_share(run: Path) -> None:
    def held(catalog_parallel: int) -> dict[str, tuple[float, float]]:
        settings = ["model.width=16384", "labels.form=factored", f"distributed.catalog_parallel={catalog_parallel}"]
        return memory(config_of(run, *settings), 2)

    table = Dataset(run / "dataset").num_items * 16384 * 4 / 2**20
    assert held(2).keys() == {"ddp (used)", "fsdp"}, "DeepSpeed takes no slices"
    assert held(1)["ddp (used)"][0] - held(2)["ddp (used)"][0] == pytest.approx((6 + 2 - 2.5 - 1) * table, abs=0.2)
