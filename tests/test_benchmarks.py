"""The scripts of benchmarks/ run, on sizes too small to measure anything: what they print last can be read."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from benchmarks import agreement, gpu, peers
from csrec_dist.experiments.simulate import simulate
from csrec_dist.experiments.world import SimulationOptions
from csrec_dist.losses import FactoredLabels

ROOT = Path(__file__).resolve().parents[1]
LONG = pytest.mark.long

SCRIPTS = [
    "evaluation --items 300 --rows 10 --repeats 1 --hide",
    "loss --examples 30 --items 300 --repeats 1",
    pytest.param("catalog --items 3000 --windows 2 --ranks 2 --steps 1", marks=LONG),
    pytest.param("gain", marks=LONG),
    "feedback",
    pytest.param("joining --processes 2", marks=LONG),
    pytest.param(
        "ranks --interactions 200000 --shards 8 --batch-size 64 --steps 1 --output {folder}/ranks", marks=LONG
    ),
    pytest.param("scaling --ranks 1 2 --repeats 1 --steps 2 --sizes gru4rec:8:4:200", marks=LONG),
    pytest.param("sharded --items 4000 --idle-items 1000 --width 8 --ranks 1 --engines ddp", marks=LONG),
    pytest.param(
        "steps --models gru4rec --items 300 --windows 4 --examples 30 --tiles 8 --blocks 8 --repeats 1", marks=LONG
    ),
    pytest.param("stream --interactions 200000 --shards 4 --batch-size 16", marks=LONG),
]


def last_line(script: str, folder: Path) -> str:
    """The last line that a script prints; it ends without an error."""
    name, *arguments = script.format(folder=folder).split()
    command = [sys.executable, ROOT / f"benchmarks/{name}.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_prints_its_results(script: str, tmp_path: Path) -> None:
    assert json.loads(last_line(script, tmp_path))


RUN_SCRIPTS = ["labels {run} --temperatures 1", "serve {run} --seconds 0.2 --clients 1 --lists 1"]


@pytest.mark.long
@pytest.mark.parametrize("script", RUN_SCRIPTS)
def test_a_script_that_reads_a_run(script: str, finished_run: tuple[Path, Path], tmp_path: Path) -> None:
    assert last_line(script.replace("{run}", str(finished_run[1])), tmp_path)


@pytest.mark.long
def test_leaks_ranks_again_as_a_run_that_ranks_seen_items_did(finished_run: tuple[Path, Path], tmp_path: Path) -> None:
    run = finished_run[1]
    assert not yaml.safe_load((run / "config.yaml").read_text())["evaluation"]["exclude_seen"]
    stored, again = (json.loads(last_line(f"leaks {run}{option}", tmp_path)) for option in ("", " --with-seen"))
    assert (stored["with_seen"], again["with_seen"]) == (False, True)
    assert again["results"] == stored["results"]


SHORT = "--seeds 0 --set training.max_epochs=1 --set dataset.window=8 --set dataset.min_interactions=1"


@pytest.mark.long
def test_ensembles_that_the_product_does_not_have(small_log: Path, tmp_path: Path) -> None:
    line = json.loads(last_line(f"ensembles {small_log} {SHORT} --ranks ranks.parquet", tmp_path))
    assert set(line["students"]) == {"Base", "independent", "sequence", "last", "pair"}
    assert set(line["stacked"]) == {"independent", "pair"}
    ranks = pl.read_parquet(tmp_path / "ranks.parquet")
    for (name,), rows in ranks.group_by("run"):
        gain = pl.when(pl.col("rank") <= 10).then(math.log(2) / (pl.col("rank") + 1).log()).otherwise(0.0)
        assert rows.select(gain.mean()).item() == pytest.approx(line["students"][name]["ndcg@10"] / 100)


@pytest.mark.long
def test_soft_labels_weighted_by_agreement(tmp_path: Path) -> None:
    options = SimulationOptions(num_users=60, num_items=30, num_interactions=900, choice="draw")
    simulate(options, tmp_path / "draw_tiny")
    line = json.loads(last_line(f"agreement draw_tiny {SHORT}", tmp_path))
    assert set(line["results"]["draw_tiny"]) == {"Base", "plain", "linear", "half"}


def test_agreement_is_one_less_the_divergence_of_equal_members_and_least_of_opposed_ones() -> None:
    """Two members whose predictions share no item differ by ln 2, equal ones by 0."""
    tables = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]) * 60
    states = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2
    found = agreement.divergences(FactoredLabels(states, tables))
    assert found.tolist() == pytest.approx([0, math.log(2)])
    assert agreement.linear(found).tolist() == pytest.approx([1, 0])
    assert agreement.half(found).tolist() == [1, 0]


def test_the_parts_for_a_gpu_are_listed(tmp_path: Path) -> None:
    assert "benchmarks/scaling.py" in last_line("gpu --list", tmp_path)


@pytest.mark.parametrize("last", ["{'items': 5}", '{"items": 5', "Traceback"])
def test_what_a_part_says_that_was_cut_off_is_kept(last: str) -> None:
    assert gpu.said(f"3 passed in 2 s\n{last}\n") == {"tests": {"passed": 3}, "failed": [], "last_line": last}
    assert gpu.said(f'{last}\n{{"items": 5}}\n') == {"result": {"items": 5}}


def process(seconds: float, ndcg: float) -> dict[str, Any]:
    """Figures of a process of `peers.py`, all of whose seconds are the same."""
    names = ("epoch_s", "epoch_cpu_s", "evaluation_s", "evaluation_cpu_s", "preparing_s")
    return dict.fromkeys(names, seconds) | {"ndcg@10": [0.1, ndcg]}


def test_peers_are_compared_round_by_round() -> None:
    """Medians of the rounds' own ratios, each with what it is to be compared with; a failed process counts for none."""
    seconds = [(1, 9, 2, 8), (2, 8, 2, 6), (1, None, 1, 7)]
    rounds = [
        {
            "csrec_dist": process(here, 0.2),
            "recbole": {"failed": ["…"]} if there is None else process(there, 0.1),
            "csrec_dist_m": process(student, 0.3),
            "plain": process(plain, 0.3),
        }
        for here, there, student, plain in seconds
    ]
    found = peers.ratios(rounds)
    assert found.keys() == {"recbole", "plain"}
    assert (found["recbole"]["epoch_s"], found["recbole"]["ndcg"]) == (6.5, 2.0)
    assert (found["plain"]["epoch_s"], found["plain"]["ndcg"]) == (4.0, 1.0)


def test_peers_that_have_sasrec_alone_train_nothing_else() -> None:
    assert peers.systems_for("sasrec", ["csrec_dist", "rectools"]) == ["csrec_dist", "rectools"]
    assert peers.systems_for("narm", ["csrec_dist", "rectools"]) == ["csrec_dist"]


def test_the_first_of_several_epochs_warms_up() -> None:
    seconds = {"epoch": [(9.0, 9.0), (2.0, 1.0), (4.0, 3.0)], "preparing": [(0.5, 0.4)]}
    found = peers.figures({"seconds": seconds, "examples": 300}, 7)
    assert (found["epoch_s"], found["epoch_cpu_s"], found["preparing_s"]) == (3.0, 2.0, 0.5)
    assert found["prefixes_per_second"] == 100
