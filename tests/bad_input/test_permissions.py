"""What a user may not read or write: one sentence that names it and says whom to ask, and no file has changed.

Root reads everything, so that the commands run as nobody; what they import has to be there before.
"""

import logging.config  # noqa: F401 (uvicorn's)
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets  # noqa: F401
import optuna  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pytest
import uvicorn.server  # noqa: F401
import yaml

import csrec_dist.experiments.study
import csrec_dist.experiments.tune
import csrec_dist.init.command
import csrec_dist.labels.recompute
import csrec_dist.report
import csrec_dist.report.paired
import csrec_dist.runs.verify
import csrec_dist.serve  # noqa: F401
from csrec_dist.cli import main
from tests.helpers.bad_input import LOG, write_config
from tests.helpers.finished_runs import content
from tests.helpers.permissions import as_a_colleague
from tests.helpers.study_files import BASE, STUDY

UNREADABLE: dict[str, tuple[str, str]] = {
    "config": ("prepare --config {here}/config.yaml", "{here}/config.yaml"),
    "log": ("prepare --config {here}/config.yaml", "{here}/log.csv"),
    "log of init": ("init {here}/log.csv -o {here}/new.yaml", "{here}/log.csv"),
    "folder of the log": ("init {here}/logs/log.csv -o {here}/new.yaml", "{here}/logs"),
    "folder of the runs": ("prepare --config {here}/config.yaml", "{here}/runs"),
    "study": ("study {here}/study.yaml", "{here}/study.yaml"),
    "config of a study": ("study {here}/study.yaml", "{here}/base.yaml"),
    "space": ("tune --config {here}/base.yaml --space {here}/space.yaml", "{here}/space.yaml"),
    "histories": ("recommend {run} --histories {here}/h.jsonl --output {here}/l", "{here}/h.jsonl"),
    "run of another: report": ("report {run}", "{run}"),
    "run of another: recommend": ("recommend {run}", "{run}"),
    "run of another: verify": ("verify {run}", "{run}"),
    "run of another: compare": ("compare {run} {run}:teacher-0", "{run}"),
    "run of another: serve": ("serve {run}", "{run}"),
    "config of a run": ("report {run}", "{run}/config.yaml"),
    "labels": ("labels info {run}", "{run}/labels"),
    "index of the labels": ("labels verify {run}", "{run}/labels/label_cache.index.json"),
    "shard of the labels": ("labels verify {run}", "{run}/labels/labels-00001-of-00004.safetensors"),
    "dataset": ("reshard {run}/dataset {here}/new --num-shards 2", "{run}/dataset"),
    "dataset.json": ("recommend {run} --output {here}/l", "{run}/dataset/dataset.json"),
    "items": ("recommend {run} --output {here}/l", "{run}/dataset/items.parquet"),
    "shard of the dataset": (
        "reshard {run}/dataset {here}/new --num-shards 2",
        "{run}/dataset/test-00000-of-00004.parquet",
    ),
    "stored log": (
        "prepare --append {here}/log.csv --dataset {run}/dataset --to {here}/new",
        "{run}/dataset/log.parquet",
    ),
    "student": ("recommend {run} --output {here}/l", "{run}/student"),
    "weights": ("recommend {run} --output {here}/l", "{run}/student/model.safetensors"),
    "teacher": ("labels verify {run} --recompute 1", "{run}/teachers/teacher-0"),
    "ranks": ("compare {run} {run}:teacher-0", "{run}/ranks"),
    "metrics": ("report {run} {run}", "{run}/metrics.json"),
    "record of a stage": ("recommend {run} --output {here}/l", "{run}/distill.done.json"),
    "restart": ("run {again} --restart label", "{run}/teachers/teacher-0"),
    "checkpoint": ("run {again} --set training.max_epochs=2", "{run}/checkpoints/distill"),
    "teacher of another": (
        "run {again} --set name=y --set teachers.pretrained=[{run}/student,{run}/student]",
        "{run}/student",
    ),
    "archive": ("fetch ml-100k --source {here}/log.csv --folder {here}/data", "{here}/log.csv"),
}


AFTER_OTHER_STAGES = ("checkpoint", "teacher of another")


@pytest.fixture
def folder(finished_run: tuple[Path, Path]) -> Iterator[Path]:
    """A folder that everybody may write into, with a log, configs, a study, a space, histories and a finished run.

    Not below pytest's own, which every session closes to others.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        config, run = finished_run
        log = Path(yaml.safe_load(config.read_text())["dataset"]["source"])
        shutil.copy(log, folder / "small.csv")
        shutil.copytree(run, folder / "r")
        (folder / "run.yaml").write_text(config.read_text().replace(str(log), str(folder / "small.csv")))
        (folder / "log.csv").write_text(LOG)
        (folder / "logs").mkdir()
        (folder / "logs/log.csv").write_text(LOG)
        (folder / "study.yaml").write_text(STUDY)
        (folder / "base.yaml").write_text(BASE.format(log=log))
        (folder / "space.yaml").write_text("training.beta: [0.5, 1]")
        (folder / "h.jsonl").write_text('{"user": 1, "items": ["i1"]}\n')
        (folder / "runs").mkdir()
        write_config(folder)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        yield folder


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_somebody_else_may_not_read(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    again = f"--config run.yaml --set output={folder}"
    command, place = (text.format(here=folder, run=folder / "r", again=again) for text in UNREADABLE[name])
    before = content(folder)
    with as_a_colleague(Path(place)):
        capsys.readouterr()
        status = main(command.split())
        said = capsys.readouterr()
    assert status == 2, said
    assert place in said.out + said.err
    assert "Traceback" not in said.err
    assert name in AFTER_OTHER_STAGES or content(folder) == before


@pytest.mark.parametrize(
    "command",
    [
        "prepare --config {here}/config.yaml",
        "simulate {here}/runs/w --users 9 --items 9",
        "init {here}/log.csv -o {here}/runs/c.yaml",
        "recommend {here}/r --output {here}/runs/l",
        "reshard {here}/r/dataset {here}/runs/new --num-shards 2",
        "fetch ml-100k --source {here}/log.csv --folder {here}/runs",
        "study {here}/study.yaml --output {here}/runs",
    ],
)
def test_where_somebody_else_may_not_write(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "runs").chmod(0o755)
    before = content(folder)
    with as_a_colleague(folder / "h.jsonl"):
        capsys.readouterr()
        status = main(command.format(here=folder).split())
        said = capsys.readouterr()
    assert status == 2, said
    assert str(folder / "runs") in said.err
    assert content(folder) == before
