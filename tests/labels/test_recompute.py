"""Labels computed again from the teachers: equal where they are theirs, and said where they are not."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from csrec_dist.cli import main
from csrec_dist.files import read_json, sha256_file, write_json
from tests.helpers.finished_runs import refused

SHARD = "labels-00002-of-00004.safetensors"


def replaced(folder: Path, factor: float) -> None:
    """Multiply a shard's states, and tell the index, as if labelling had written them so."""
    with safe_open(folder / SHARD, "pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor * factor for name, tensor in load_file(folder / SHARD).items()}
    save_file(tensors, folder / SHARD, metadata)
    index = read_json(folder / "label_cache.index.json")
    index["shards"][2] |= {"sha256": sha256_file(folder / SHARD), "bytes": (folder / SHARD).stat().st_size}
    write_json(folder / "label_cache.index.json", index)


def test_the_teachers_give_the_labels_again(
    run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_copy[1]
    assert main(["labels", "verify", str(run), "--recompute", "1"]) == 0
    said = capsys.readouterr().out
    assert all(f"labels-{shard:05d}-of-00004.safetensors" in said for shard in range(4))
    assert main(["labels", "verify", str(run), "--recompute", "0.01"]) == 0
    assert capsys.readouterr().out.count("labels-0") == 1, "at least one"


def test_labels_that_the_teachers_do_not_give_are_said(
    run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_copy[1]
    replaced(run / "labels", 1 + 1e-6)
    assert main(["labels", "verify", str(run), "--recompute", "1"]) == 0, "as another machine may have summed"
    replaced(run / "labels", 1.01)
    assert main(["labels", "verify", str(run)]) == 0, "the checksums are right"
    assert "damaged in 1 places" in refused(capsys, "labels", "verify", str(run), "--recompute", "1")


def test_other_teachers_are_said(run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = run_copy[1]
    weights = run / "teachers/teacher-0/model.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(weights).items()}, weights)
    assert "other weights than the teacher" in refused(capsys, "labels", "verify", str(run), "--recompute", "0.5")


@pytest.mark.parametrize("share", ["0", "-1", "1.5", "nan"])
def test_a_share_that_is_none(finished_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str], share: str) -> None:
    assert "--recompute takes a share" in refused(
        capsys, "labels", "verify", str(finished_run[1]), f"--recompute={share}"
    )
