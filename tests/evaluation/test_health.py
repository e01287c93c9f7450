"""Trainings that have gone wrong are named, and healthy ones are not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from csrec_dist.cli import main
from csrec_dist.evaluation import health
from csrec_dist.evaluation.health import at_chance, behind_teachers, signs
from csrec_dist.files import read_json
from csrec_dist.models.gru4rec import GRU4Rec
from csrec_dist.runs.run import Run
from csrec_dist.tensor_files import save_tensors

EXAMPLES, ITEMS = 40, 60
DEMO = Path(__file__).resolve().parents[2] / "configs/experiments/demo.yaml"


def healthy(seed: int, scale: float = 1.0) -> Tensor:
    """Logits of a model that prefers other items for other histories."""
    draw = torch.Generator().manual_seed(seed)
    return scale * torch.randn(EXAMPLES, ITEMS, generator=draw) + torch.randn(ITEMS, generator=draw)


def texts(temperature: float = 3.0, **logits: Tensor) -> list[tuple[str, bool]]:
    return [(sign.text, sign.stops) for sign in signs(logits, temperature)]


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_healthy_members_have_no_signs(scale: float) -> None:
    assert not texts(one=healthy(0, scale), other=healthy(1, scale))
    assert not texts(one=healthy(0, scale), nearly=healthy(0, scale) + 0.01 * scale * healthy(2))


@pytest.mark.parametrize(
    ("logits", "words", "stops"),
    [
        (torch.full((EXAMPLES, ITEMS), 5.0), "scores all items alike", True),
        (5 + 1e-6 * healthy(0), "scores all items alike", True),
        (healthy(0)[:1].expand(EXAMPLES, ITEMS), "every history the same list", False),
        (healthy(0, 1e5), "logits up to", False),
        (healthy(0, 1e3), "sure of one item", False),
    ],
)
def test_a_planted_fault_is_named_with_its_member(logits: Tensor, words: str, stops: bool) -> None:
    [(text, is_fatal)] = texts(healthy=healthy(7), planted=logits)
    assert text.startswith("planted ")
    assert words in text
    assert is_fatal == stops


def test_two_members_that_are_one_are_named() -> None:
    [(text, stops)] = texts(one=healthy(0), shifted=healthy(0) + 3, other=healthy(1))
    assert "one and shifted give the same logits" in text
    assert not stops


@pytest.mark.parametrize("num_items", [4, 50])
def test_random_lists_are_at_chance_and_better_ones_are_not(num_items: int) -> None:
    draw, rows = np.random.default_rng(0), 400
    gains = np.array([1 / np.log2(k + 1) if k <= 10 else 0.0 for k in range(1, num_items + 1)])
    means = [float(gains[draw.integers(num_items, size=rows)].mean()) for _ in range(300)]
    named = [at_chance(mean, num_items, rows) is not None for mean in means]
    assert np.mean(named) > 0.99
    assert at_chance(float(gains.mean() + 4 * gains.std() / rows**0.5), num_items, rows) is None
    assert f"random lists reach {gains.mean():.4f} ± {gains.std() / rows**0.5:.4f}" in (
        at_chance(0.0, num_items, rows) or ""
    )


def test_a_training_that_was_cut_short_is_not_called_a_broken_log() -> None:
    said = at_chance(0.0, 50, 400, rose_to_the_end=1) or ""
    assert "its last epoch was its best, where training.max_epochs (1) ended it; raise it" in said
    assert "order of the log" not in said


@pytest.mark.parametrize(
    ("student", "num_rows", "is_named"),
    [(0.05, 6000, True), (0.08, 6000, False), (0.12, 6000, False), (0.05, 100, False), (0.0, 100, True)],
    ids=["far", "near", "above", "within chance", "nothing"],
)
def test_a_student_far_behind_its_teachers_is_named(student: float, num_rows: int, is_named: bool) -> None:
    assert (behind_teachers(student, [0.09, 0.11], num_rows) is not None) == is_named


def test_chance_alone_names_no_student() -> None:
    """Student and teacher are equally good, each on rows of its own, which differ more than shared ones."""
    draw, rows, num_items = np.random.default_rng(0), 200, 12
    gains = np.array([1 / np.log2(k + 1) if k <= 10 else 0.0 for k in range(1, num_items + 1)])
    pairs = [gains[draw.integers(num_items, size=(2, rows))].mean(1) for _ in range(1000)]
    assert not any(behind_teachers(float(one), [float(other)], rows) for one, other in pairs)


CONFIG = """
name: r
output: {folder}
dataset: {{source: {log}, window: 8, min_interactions: 3, num_shards: 4}}
model: {{name: gru4rec, width: 16, hidden: 16, dropout: 0}}
training: {{batch_size: 7, max_epochs: 8, learning_rate: 0.01}}
"""


def write_config(folder: Path, log: Path) -> list[str]:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(folder=folder, log=log))
    return ["--config", str(path)]


def test_a_healthy_run_says_nothing(tmp_path: Path, small_log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in ("prepare", "teach", "label", "distill"):
        assert main([stage, *write_config(tmp_path, small_log)]) == 0
    assert "warning" not in capsys.readouterr().out
    assert not any("warnings" in Run(tmp_path / "r").require(stage).outputs for stage in ("teach", "distill"))


@pytest.mark.long
def test_the_demo_says_nothing_after_its_first_epoch(
    tmp_path: Path, test_data: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    values = [
        f"output={tmp_path}",
        f"dataset.source={test_data('ml100k') / 'interactions.parquet'}",
        "training.max_epochs=1",
        "teachers.num=2",
    ]
    settings = [part for value in values for part in ("--set", value)]
    for stage in ("prepare", "teach", "label", "distill"):
        assert main([stage, "--config", str(DEMO), *settings]) == 0
    assert "warning" not in capsys.readouterr().out


def test_a_run_whose_member_collapsed_stops_before_labels_are_made_of_it_and_keeps_it(
    tmp_path: Path, small_log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, save = write_config(tmp_path, small_log), GRU4Rec.save_pretrained

    def save_collapsed(model: GRU4Rec, folder: Path, **options: bool) -> None:
        save(model, folder, **options)
        if folder.name == "teacher-1":
            tensors = {
                name: torch.zeros_like(tensor) for name, tensor in load_file(folder / "model.safetensors").items()
            }
            save_tensors(folder / "model.safetensors", tensors)

    monkeypatch.setattr(GRU4Rec, "save_pretrained", save_collapsed)
    assert main(["run", *arguments]) == 2
    said = capsys.readouterr().err
    assert "csrec-dist: teach/teacher-1 scores all items alike" in said
    assert "--restart teach" in said
    assert not (tmp_path / "r/labels").exists()
    assert (tmp_path / "r/teachers/teacher-0/metrics.json").exists()
    assert list((tmp_path / "r/checkpoints/teach/teacher-1").glob("step-*"))
    monkeypatch.undo()
    assert main(["run", *arguments]) == 2, "what is on the disk has not changed"
    assert main(["teach", *arguments, "--restart", "teach"]) == 0


def test_a_training_that_learns_nothing_is_said_with_its_stage(
    tmp_path: Path, small_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate of almost 0: its lists stay those of the first weights."""
    arguments = [*write_config(tmp_path, small_log), "--set", "training.learning_rate=1e-12"]
    for stage in ("prepare", "teach"):
        assert main([stage, *arguments]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: teach/teacher-0: its best validation ndcg@10 is" in said
    warnings = Run(tmp_path / "r").require("teach").outputs["warnings"]
    assert any("teach/teacher-0" in text and "random lists reach" in text for text in warnings)
    assert read_json(tmp_path / "r/teachers/teacher-0/metrics.json")["best"] < 1


def test_a_student_behind_its_teachers_is_said_and_stays_in_the_record(
    tmp_path: Path, small_log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By limits that every student misses."""
    monkeypatch.setattr(health, "LEAST_OF_TEACHERS", 1000.0)
    monkeypatch.setattr(health, "ERRORS_FROM_CHANCE", -1000.0)
    arguments = write_config(tmp_path, small_log)
    for stage in ("prepare", "teach", "label", "distill"):
        assert main([stage, *arguments]) == 0
    said = " ".join(capsys.readouterr().out.split())
    best = [
        read_json(tmp_path / f"r/{name}/metrics.json")["best"]
        for name in ("student", "teachers/teacher-0", "teachers/teacher-1")
    ]
    figures = f"{best[0]:.4f}, and that of its teachers {sum(best[1:]) / 2:.4f}"
    sentence = f"its best validation ndcg@10 is {figures}"
    assert f"distill warning: {sentence}: it did not learn what they know" in said
    warnings = Run(tmp_path / "r").require("distill").outputs["warnings"]
    assert any(text.startswith(f"distill: {sentence}") for text in warnings)
