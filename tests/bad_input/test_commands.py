"""Wrong histories, archives, arguments, studies, spaces and environments: one sentence, and no file has changed."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from csrec_dist.cli import main
from tests.helpers.bad_input import LOG, Case, assert_refused, write_config
from tests.helpers.finished_runs import content
from tests.helpers.study_files import BASE, STUDY

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
Make = Callable[[Path, Path], list[str]]
"""What makes the wrong thing in a folder, beside a finished run, and gives the command."""


def history(text: str | bytes, *parts: str) -> tuple[Make, tuple[str, ...]]:
    """A file of histories for `recommend`."""

    def make(folder: Path, run: Path) -> list[str]:
        (folder / "h.jsonl").write_bytes(text.encode() if isinstance(text, str) else text)
        lists = ["--output", str(folder / "lists.parquet")]
        return ["recommend", str(run), "--histories", str(folder / "h.jsonl"), *lists]

    return make, parts


def words(text: str, *parts: str) -> tuple[Make, tuple[str, ...]]:
    """A command; `{run}` is a finished run, `{here}` a folder with log.csv, config.yaml and study.yaml."""
    return lambda folder, run: text.format(run=run, here=folder).split(), parts


def written(text: str | bytes, command: str, *parts: str, name: str = "file") -> tuple[Make, tuple[str, ...]]:
    """A command that reads a file with this text."""

    def make(folder: Path, run: Path) -> list[str]:
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return command.format(run=run, here=folder).split()

    return make, parts


def zipped(**members: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("_", "."), text)
    return data.getvalue()


def tarred(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)
    return data.getvalue()


ITEMS = '{"user": 1, "items": ["i1"]}\n'
FETCH = "fetch ml-100k --source {here}/u.zip --folder {here}/data"
STUDIED = "study {here}/study.yaml --output {here}/studies"
TUNED = "tune --config {here}/config.yaml --space {here}/file --output {here}/tunings"
SIMULATED = "simulate {here}/world --interactions 100 --users 10 --items 10 "

CASES: dict[str, tuple[Make, tuple[str, ...]]] = {
    "history: empty": history("", "Nothing|nothing|no history|no user"),
    "history: not JSON": history("hello\n", r"h\.jsonl, line 1 is not JSON", "user"),
    "history: a number": history("17\n", r"h\.jsonl, line 1", "17"),
    "history: no items": history('{"user": 1}\n', r"h\.jsonl, line 1"),
    "history: no user": history('{"items": ["i1"]}\n', r"h\.jsonl, line 1"),
    "history: items that are no list": history('{"user": 1, "items": "i1"}\n', r"h\.jsonl, line 1", "i1"),
    "history: nested items": history('{"user": 1, "items": [["i1"]]}\n', r"h\.jsonl, line 1"),
    "history: an item that is null": history('{"user": 1, "items": [null]}\n', r"h\.jsonl, line 1"),
    "history: an item that is true": history('{"user": 1, "items": [true]}\n', r"h\.jsonl, line 1"),
    "history: a fraction for an item": history('{"user": 1, "items": [1.5]}\n', r"h\.jsonl, line 1"),
    "history: a user that is a list": history('{"user": [1], "items": ["i1"]}\n', r"h\.jsonl, line 1"),
    "history: a user that is null": history('{"user": null, "items": ["i1"]}\n', r"h\.jsonl, line 1"),
    "history: a lone surrogate": history('{"user": "\\ud800", "items": ["i1"]}\n', r"h\.jsonl"),
    "history: deep JSON": history(DEEP + "\n", r"h\.jsonl, line 1"),
    "history: an array": history('[{"user": 1, "items": ["i1"]}]\n', r"h\.jsonl, line 1"),
    "history: latin-1": history(ITEMS.encode() + '{"user": "é", "items": ["i1"]}\n'.encode("latin-1"), "line 2"),
    "history: zeros": history(bytes(100), r"h\.jsonl, line 1"),
    "history: a number of 10,000 digits": history('{"user": %s, "items": ["i1"]}\n' % ("9" * 10_000), r"h\.jsonl"),
    "history: NaN": history('{"user": NaN, "items": ["i1"]}\n', r"h\.jsonl, line 1"),
    "history: unknown items": history('{"user": 1, "items": ["?"]}\n', "1 items of .*h.jsonl are not in the dataset"),
    "history: not there": words("recommend {run} --histories {here}/n --output {here}/l", "n", "not"),
    "history: a folder": words("recommend {run} --histories {here} --output {here}/l", "not a file"),
    "history: a device": words("recommend {run} --histories /dev/zero --output {here}/l", "/dev/zero"),
    "recommend: no items": words("recommend {run} -n 0 --output {here}/l", "0"),
    "recommend: too many items": words("recommend {run} -n 31 --output {here}/l", "31", "30"),
    "recommend: no batch": words("recommend {run} --batch-size 0 --output {here}/l", "batch", "0"),
    "recommend: fewer than no batch": words("recommend {run} --batch-size -5 --output {here}/l", "batch", "-5"),
    "recommend: into a folder": words("recommend {run} --output {here}", "is a folder"),
    "recommend: into a device": words("recommend {run} --output /dev/null", "/dev/null is a device"),
    "recommend: below a file": words("recommend {run} --output {here}/log.csv/l", "log.csv", "folder"),
    "recommend: of no run": words("recommend {here}", "not the folder of a run|config.yaml"),
    "archive: not there": words("fetch ml-100k --source {here}/none --folder {here}/data", "none is not a file"),
    "archive: a folder": words("fetch ml-100k --source {here} --folder {here}/data", "is not a file"),
    "archive: empty": written(b"", FETCH, r"u\.zip", name="u.zip"),
    "archive: no archive": written("hello", FETCH, r"u\.zip is not the archive its name suggests", name="u.zip"),
    "archive: cut off": written(zipped(u_data="x" * 999)[:-20], FETCH, r"u\.zip", name="u.zip"),
    "archive: without the log": written(
        zipped(a_txt="x"), FETCH, "contains none of ml-100k.inter, u.data", name="u.zip"
    ),
    "tar: a link": written(tarred("u.data", tarfile.SYMTYPE, "/etc/passwd"), FETCH, "u.data", name="u.zip"),
    "tar: a hard link": written(tarred("u.data", tarfile.LNKTYPE, "log.csv"), FETCH, "u.data", name="u.zip"),
    "tar: a device": written(tarred("u.data", tarfile.CHRTYPE), FETCH, "u.data in it is not a file", name="u.zip"),
    "tar: a folder": written(tarred("u.data", tarfile.DIRTYPE), FETCH, "u.data in it is not a file", name="u.zip"),
    "tar: a pipe": written(tarred("u.data", tarfile.FIFOTYPE), FETCH, "u.data in it is not a file", name="u.zip"),
    "study: not there": words("study {here}/none.yaml", "none.yaml"),
    "study: no name of the package": words("study tabel3", "tabel3"),
    "study: empty": written("", STUDIED, "study.yaml", name="study.yaml"),
    "study: a list": written("[1]", STUDIED, "study.yaml", name="study.yaml"),
    "study: an unknown key": written(STUDY + "titel: x\n", STUDIED, "titel", name="study.yaml"),
    "study: no axes": written("title: x\nconfig: base.yaml\n", STUDIED, "axes", name="study.yaml"),
    "study: an unknown key of the config": written(
        STUDY.replace("training.temperature: 3", "training.temprature: 3"), STUDIED, "temprature", name="study.yaml"
    ),
    "study: a config that is not there": written(
        STUDY.replace("base.yaml", "n.yaml"), STUDIED, "n.yaml", name="study.yaml"
    ),
    "study: an axis that is not there": words("study {here}/study.yaml --only colour=red", "colour"),
    "study: a value that is not there": words("study {here}/study.yaml --only method=Bass", "Bass", "Base"),
    "study: no jobs": words("study {here}/study.yaml --jobs 0", "jobs", "0"),
    "study: results of another": words("study {here}/study.yaml --with {here}/log.csv --results", "log.csv"),
    "tune: a space that is empty": written("", TUNED, "file"),
    "tune: a space that is a list": written("[1]", TUNED, "file"),
    "tune: an unknown key": written("training.betta: [1, 2]", TUNED, "betta"),
    "tune: one value": written("training.beta: 0.5", TUNED, "beta"),
    "tune: no value": written("training.beta: []", TUNED, "beta"),
    "tune: a value that is none": written("training.beta: [0.5, much]", TUNED, "much"),
    "tune: a range that ends before it begins": written("training.beta: {low: 1, high: 0}", TUNED, "low is 1"),
    "tune: a log of zero": written("training.beta: {low: 0.0, high: 1, log: true}", TUNED, "log needs a low above 0"),
    "tune: the rows that are validated": written("dataset.window: [5, 9]", TUNED, "dataset.window"),
    "tune: no trials": written("training.beta: [0.5, 1]", TUNED + " --trials 0", "trials", "0"),
    "simulate: no items": words(SIMULATED + "--items 0", "items", "0"),
    "simulate: noise above 1": words(SIMULATED + "--noise-rate 2", "noise", "2"),
    "simulate: drift below 0": words(SIMULATED + "--drift -1", "drift", "-1"),
    "simulate: more clusters than items": words(SIMULATED + "--clusters 99", "99"),
    "simulate: not a number": words(SIMULATED + "--sharpness nan", "sharpness", "nan"),
    "simulate: too many users": words(SIMULATED + f"--users {10**30}", "users"),
    "simulate: into a file": words("simulate {here}/log.csv", "log.csv"),
    "init: a file that is there": words("init {here}/log.csv -o {here}/config.yaml", "is there already", "--overwrite"),
    "init: over the log": words("init {here}/log.csv -o {here}/log.csv --overwrite", "is the log itself"),
    "init: a key of training": words(
        "init {here}/log.csv --set training.beta=1 -o {here}/c", "training.beta", "dataset"
    ),
    "init: into a folder": words("init {here}/log.csv -o {here} --overwrite", "is a folder"),
    "init: no log": words("init {here}/none.csv", "none.csv", "does not exist"),
    "init: options for a config of the package": words("init demo --yes", "demo is copied", "options are for logs"),
    "reshard: no shards": words("reshard {run}/dataset {here}/new --num-shards 0", "0"),
    "reshard: more shards than rows": words("reshard {run}/dataset {here}/new --num-shards 99999", "99,?999"),
    "reshard: no dataset": words("reshard {here} {here}/new --num-shards 2", "is not a prepared dataset"),
    "reshard: into a folder with files": words("reshard {run}/dataset {here} --num-shards 2", "is not an empty folder"),
    "append: no log": words(
        "prepare --append {here}/n --dataset {run}/dataset --to {here}/new", "'.*/n' does not exist"
    ),
    "append: no dataset": words(
        "prepare --append {here}/log.csv --dataset {here} --to {here}/new", "not a prepared dataset"
    ),
    "append: half of it": words("prepare --append {here}/log.csv", "--append LOG --dataset OLD --to NEW"),
    "append: a key of training": words(
        "prepare --append {here}/log.csv --dataset {run}/dataset --to {here}/new --set training.beta=1",
        "only keys of dataset",
    ),
    "append: into the old one": words(
        "prepare --append {here}/log.csv --dataset {run}/dataset --to {run}/dataset", "prepared from"
    ),
    "plan: no processes": words("plan --config {here}/config.yaml --num-processes 0", "0"),
    "plan: no config": words("plan --config {here}/none.yaml", "none.yaml does not exist"),
    "run: a stage that is none": words("run --config {here}/config.yaml --restart lable", "--restart lable", "label"),
    "run: a key without a value": words("run --config {here}/config.yaml --set training.beta", "key=value|KEY=VALUE"),
    "run: a key twice": words("run --config {here}/config.yaml --set seed=1 --set seed=2", "given twice"),
    "run: a day that is none": words("run --config {here}/config.yaml --set name=2020-13-45", "that YAML cannot read"),
    "run: a value that is no YAML": words("run --config {here}/config.yaml --set seed=[", "not valid YAML"),
    "run: a key of a value": words("run --config {here}/config.yaml --set name.x=1", "name is a value, not a section"),
    "run: a folder that is somebody's": words(
        "run --config {here}/config.yaml --set name=mine", "not the folder of a run"
    ),
    "run: a name that is a file": words("run --config {here}/config.yaml --set name=file", "is a file"),
    "run: an output that is a file": words("run --config {here}/config.yaml --set output={here}/log.csv", "log.csv"),
    "teach: before prepare": words("teach --config {here}/config.yaml --set name=y", "prepare"),
    "label: before teach": words("label --config {here}/config.yaml --set name=y", "teach|prepare"),
    "baseline: not asked for": words("baseline --config {here}/config.yaml --set name=y", "Set baseline: true"),
    "compare: other rows": words("compare {run} {here}", "not the folder of a run"),
    "compare: no such model": words("compare {run} {run}:base", "base"),
    "compare: no cut-off": words("compare {run} {run}:teacher-0 -n 0", "0"),
    "report: no run": words("report {here}", "not the folder of a run"),
    "report: an output of one": words("report {run} --output {here}/page.html", "--output is for several runs"),
    "report: into a folder": words("report {run} {run} --output {here}", "is a folder"),
    "verify: no run": words("verify {here}", "not the folder of a run"),
    "labels: no cache": words("labels info {here}", "holds no soft-label cache"),
    "labels: a share of nothing": words("labels verify {run} --recompute 0", "share above 0"),
    "labels: a share of too much": words("labels verify {run} --recompute 1.5", "1.5"),
    "labels: a share that is no number": words("labels verify {run} --recompute nan", "nan"),
    "labels: no items": words("labels info {run} --items 0", "0"),
    "export: no such run": words("export {here} --format pt2", "not the folder of a run"),
    "export: no items": words("export {run} --format pt2 -n 0 --output {here}/e", "0"),
    "export: into a folder with files": words(
        "export {run} --format pt2 -n 3 --output {here}", "something else|not|files"
    ),
    "serve: no run": words("serve {here}", "neither the folder of a run"),
    "serve: a port that is none": words("serve {run} --port 70000", "70000", "--port"),
    "serve: a host that is none": words("serve {run} --host ä..b", "ä..b", "--host"),
    "serve: no body": words("serve {run} --max-body 0", "at least 1"),
    "bench: no items": words("bench --items 0 --output {here}/b.json", "0"),
}


@pytest.fixture
def folder(tmp_path: Path, small_log: Path) -> Path:
    """A folder with a log, a config, a study, a file and somebody's folder where runs would be."""
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "base.yaml").write_text(BASE.format(log=small_log))
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/thesis.txt").write_text("years of work")
    (tmp_path / "runs/file").write_text("years of work")
    write_config(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_a_command_refuses(
    name: str,
    folder: Path,
    finished_run: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    make, parts = CASES[name]
    before = content(finished_run[1])
    assert_refused(folder, capsys, Case(name, lambda here: make(here, finished_run[1]), parts))
    assert content(finished_run[1]) == before


ENVIRONMENTS: dict[str, tuple[dict[str, str], str, int, tuple[str, ...]]] = {
    "a rank without a world": ({"RANK": "1"}, "run", 2, ("RANK", "WORLD_SIZE")),
    "a world without ranks": ({"WORLD_SIZE": "2"}, "run", 2, ("WORLD_SIZE=2 but no MASTER_ADDR", "accelerate launch")),
    "a world of nothing": ({"WORLD_SIZE": ""}, "doctor", 2, ("WORLD_SIZE=''",)),
    "a world of words": ({"RANK": "0", "WORLD_SIZE": "two"}, "run", 2, ("WORLD_SIZE", "two")),
    "a rank beyond the world": (
        {"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
        "run",
        2,
        ("RANK", "5", "2"),
    ),
    "a rank without an address": ({"RANK": "0", "WORLD_SIZE": "2"}, "run", 2, ("no MASTER_ADDR and no MASTER_PORT",)),
    "a rank without a port": (
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ""},
        "run",
        2,
        ("WORLD_SIZE=2 but no MASTER_PORT", "start with a launcher"),
    ),
    "a port of words": (
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "http"},
        "run",
        2,
        ("MASTER_PORT", "http"),
    ),
    "threads of words": ({"OMP_NUM_THREADS": "many"}, "run", 2, ("OMP_NUM_THREADS", "many")),
    "no threads": ({"OMP_NUM_THREADS": "0"}, "run", 2, ("OMP_NUM_THREADS", "0")),
    "downloads in a file": ({"CSREC_DATA": "log.csv"}, "fetch", 2, ("log.csv",)),
    "no folder for temporary files": ({"TMPDIR": "none"}, "prepare", 0, ()),
    "settings of DeepSpeed that are not there": (
        {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "none.json"},
        "run --set distributed.engine=deepspeed",
        2,
        ("none.json",),
    ),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_that_cannot_be_meant(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    variables, words_of_command, status, parts = ENVIRONMENTS[name]
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    first, *rest = words_of_command.split()
    command = (
        [first, "--config", "config.yaml", *rest] if first != "fetch" else ["fetch", "ml-100k", "--source", "u.data"]
    )
    (folder / "u.data").write_text("1\t2\t3\t4\n")
    if status:
        assert_refused(folder, capsys, Case(name, lambda here: command, parts), status)
    else:
        assert main(command) == status


def test_our_own_fault_keeps_its_traceback_and_status(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no user can mend is not dressed as their mistake."""

    def divide(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("csrec_dist.data.prepare.describe", divide)
    before = content(folder)
    with pytest.raises(ZeroDivisionError, match="planted"):
        main(["prepare", "--config", str(folder / "config.yaml")])
    assert "dataset.json" not in str(content(folder).keys() - before.keys())
