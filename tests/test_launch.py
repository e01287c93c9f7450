"""Real launchers: a whole run on two ranks equals the run of one process; a wrong launch is refused."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from csrec_dist.cli import main
from csrec_dist.files import read_json

ROOT = Path(__file__).resolve().parents[1]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]


def launch(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL
    )


def config_file(folder: Path, log: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(
        f"name: r\ndataset: {{source: {log}, window: 8, min_interactions: 3, num_shards: 5}}\n"
        "model: {name: sasrec, width: 16, dropout: 0}\nmethod: model_level\n"
        "training: {batch_size: 7, max_epochs: 2, learning_rate: 0.01, log_steps: 1}\n"
    )
    return str(path)


def curve(run: Path) -> torch.Tensor:
    epochs = read_json(run / "student" / "metrics.json")["epochs"]
    return torch.tensor([[each["loss"], each["cross_entropy"], each["divergence"]] for each in epochs])


@pytest.mark.launch
def test_accelerate_launch_on_two_ranks_equals_one_process(tmp_path: Path, small_log: Path) -> None:
    arguments = ["run", "--config", config_file(tmp_path, small_log)]
    module = ["-m", "csrec_dist", *arguments]
    two = launch([*ACCELERATE, "--multi_gpu", "--num_processes", "2", *module, "--set", "output=two"], tmp_path)
    assert two.returncode == 0, two.stderr
    assert "Recall@10" in two.stdout
    one = launch([sys.executable, *module, "--set", "output=one"], tmp_path)
    assert one.returncode == 0, one.stderr
    assert len(read_json(tmp_path / "two/r/distill.done.json")["usage"]) == 2
    assert len(read_json(tmp_path / "one/r/distill.done.json")["usage"]) == 1
    torch.testing.assert_close(curve(tmp_path / "two/r"), curve(tmp_path / "one/r"), rtol=0, atol=1e-4)
    found, expected = (read_json(tmp_path / name / "r/metrics.json")["test"] for name in ("two", "one"))
    assert found == pytest.approx(expected, abs=1e-6)
    assert (tmp_path / "two/r/report/report.md").exists()


@pytest.mark.launch
def test_a_launch_that_starts_one_process_instead_of_two_is_refused(tmp_path: Path, small_log: Path) -> None:
    module = ["-m", "csrec_dist", "run", "--config", config_file(tmp_path, small_log)]
    wrong = launch([*ACCELERATE, "--cpu", "--num_processes", "2", *module], tmp_path)
    assert wrong.returncode != 0
    assert "accelerate launch --multi_gpu --num_processes N" in wrong.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.launch
@pytest.mark.long
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_a_launcher_that_was_started_for_deepspeed_brings_its_file(tmp_path: Path, small_log: Path) -> None:
    options = ["--use_deepspeed", "--deepspeed_config_file", str(ROOT / "configs/deepspeed/zero2.json")]
    command = [*ACCELERATE, *options, "--num_processes", "2", "-m", "csrec_dist", "run"]
    more = ["--set", "distributed.engine=deepspeed", "--set", "method=base"]
    done = launch([*command, "--config", config_file(tmp_path, small_log), *more], tmp_path)
    assert done.returncode == 0, done.stderr
    trained = read_json(tmp_path / "runs/r/student/metrics.json")["trained_by"]
    assert (trained["engine"], trained["zero_stage"], trained["ranks"]) == ("deepspeed", 2, [0, 1])


LAUNCHERS = pytest.mark.parametrize(
    "launcher",
    [
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"],
        pytest.param([*ACCELERATE, "--multi_gpu", "--num_processes", "2"], marks=pytest.mark.long),
    ],
    ids=["torchrun", "accelerate"],
)


@pytest.mark.launch
@LAUNCHERS
def test_a_mistake_in_the_config_is_said_once(tmp_path: Path, small_log: Path, launcher: list[str]) -> None:
    command = ["run", "--config", config_file(tmp_path, small_log), "--set", "training.betta=1"]
    done = launch([*launcher, "-m", "csrec_dist", *command], tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("csrec-dist: ") == done.stderr.count("did you mean beta?") == 1, done.stderr


@pytest.mark.launch
@LAUNCHERS
def test_what_all_ranks_miss_when_they_work_is_said_once(tmp_path: Path, small_log: Path, launcher: list[str]) -> None:
    command = ["--config", config_file(tmp_path, small_log), "--set", "method=base", "--set", f"output={tmp_path}/runs"]
    assert main(["run", *command]) == 0
    (tmp_path / "runs/r/evaluate.done.json").unlink()
    weights = tmp_path / "runs/r/student/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = launch([*launcher, "-m", "csrec_dist", "evaluate", *command], tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("csrec-dist: ") == done.stderr.count("has other weights") == 1, done.stderr
