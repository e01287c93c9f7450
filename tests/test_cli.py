"""The command line: mistakes of the user end with one sentence and exit status 2, and overwrite nothing."""

import shlex
from pathlib import Path

import pytest

import csrec_dist.report  # noqa: F401 - a colleague may not read the interpreter's own folder, where the rest of it lies
from csrec_dist.cli import build_parser, main
from csrec_dist.cli.parsing import EXAMPLES
from csrec_dist.config import load_config
from csrec_dist.errors import SharedUserError, UserError
from csrec_dist.packaged_configs import find_config
from tests.helpers.permissions import as_a_colleague

ROOT = Path(__file__).resolve().parents[1]
HEADER = "user,item,rating,timestamp\n"


def config_of(folder: Path, source: Path | str, *lines: str) -> str:
    path = folder / "config.yaml"
    dataset = f"{{source: '{source}', window: 8, min_interactions: 3, num_shards: 4}}"
    text = [
        "name: r",
        f"output: {folder / 'runs'}",
        f"dataset: {dataset}",
        "model: {name: gru4rec, width: 8, hidden: 8}",
    ]
    path.write_text("\n".join([*text, "training: {max_epochs: 1}", "teachers: {num: 2}", *lines]) + "\n")
    return str(path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("csrec-dist: ")
    assert "Traceback" not in error
    return error


def test_prepare_prints_how_the_log_was_read(
    tmp_path: Path, small_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "--config", config_of(tmp_path, small_log)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"read {small_log} as delimited: user: user, item: item, rating: rating, timestamp: timestamp" in said
    assert f"prepare wrote {tmp_path / 'runs/r/dataset'}: " in said


def test_a_wrong_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config_of(tmp_path, "x.csv")
    assert "did you mean beta?" in refused(capsys, "run", "--config", path, "--set", "training.betta=1")
    assert "does not exist" in refused(capsys, "run", "--config", str(tmp_path / "none.yaml"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (HEADER, (), "empty|no interaction|no rows"),
        ("", (), "empty"),
        (HEADER + "a,b,1,2\nc,d,1,3\n", (), "min_interactions"),
        (HEADER + "a,b,1,2\n" * 9, ("dataset.columns.item=itm",), "itm"),
    ],
)
def test_logs_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, options: tuple[str, ...], words: str
) -> None:
    log = tmp_path / "log.csv"
    log.write_text(content)
    overrides = [part for option in options for part in ("--set", option)]
    error = refused(capsys, "run", "--config", config_of(tmp_path, log), *overrides)
    assert any(word in error for word in words.split("|")), error
    assert list((tmp_path / "runs").rglob("*.parquet")) == []


def test_a_missing_log_and_an_unfetched_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.csv" in refused(capsys, "run", "--config", config_of(tmp_path, tmp_path / "none.csv"))


def test_a_run_folder_of_another_dataset_is_left_alone(
    tmp_path: Path, small_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_of(tmp_path, small_log)
    assert main(["run", "--config", path]) == 0
    shown = capsys.readouterr().out
    assert "Recall@10" in shown
    run = tmp_path / "runs/r"
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    other = tmp_path / "other.csv"
    other.write_text("\n".join(small_log.read_text().splitlines()[:-5]) + "\n")
    error = refused(capsys, "run", "--config", config_of(tmp_path, other))
    assert "source.sha256" in error
    assert "--restart prepare" in error
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert main(["labels", "verify", str(run)]) == 0
    assert main(["labels", "info", str(run), "--items", "29351"]) == 0
    assert main(["run", "--config", config_of(tmp_path, other), "--restart", "prepare"]) == 0


def test_a_stage_out_of_turn_says_what_comes_first(
    tmp_path: Path, small_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_of(tmp_path, small_log)
    assert "csrec-dist prepare" in refused(capsys, "teach", "--config", path)
    assert main(["prepare", "--config", path]) == 0
    assert "csrec-dist teach" in refused(capsys, "label", "--config", path)
    assert "has no stage" in refused(capsys, "label", "--config", path, "--set", "method=base")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "accelerate launch --multi_gpu" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "example"), EXAMPLES.items())
def test_the_help_of_a_command_shows_an_example_that_it_accepts(
    name: str, example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = shlex.split(example)
    options = build_parser().parse_args(arguments)
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    assert f"example:\n  {example}" in capsys.readouterr().out
    assert [program, *arguments][: len(name.split()) + 1] == ["csrec-dist", *name.split()]
    assert callable(options.command)
    if getattr(options, "config", None):
        load_config(find_config(Path(options.config).stem).path, options.set)


@pytest.mark.parametrize(
    ("rank", "error", "said"),
    [
        ("0", UserError("no"), "csrec-dist: no\n"),
        ("1", UserError("no"), "csrec-dist: rank 1: no\n"),
        ("0", SharedUserError("no"), "csrec-dist: no\n"),
        ("1", SharedUserError("no"), ""),
        ("0", SharedUserError("no", is_assumed=True), "csrec-dist: no\n"),
        ("1", SharedUserError("no", is_assumed=True), "csrec-dist: rank 1: no\n"),
    ],
)
def test_a_rank_says_its_own_errors_and_rank_0_those_of_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, error: UserError, said: str
) -> None:
    def fail(folder: str, **options: object) -> None:
        raise error

    launcher = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("csrec_dist.report.Ranked.open", fail)
    assert main(["report", "x"]) == 2
    assert capsys.readouterr().err == said


def test_what_one_rank_alone_misses_is_said_where_the_launcher_keeps_no_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    for name, value in (launcher | {"TORCHELASTIC_USE_AGENT_STORE": "False"}).items():
        monkeypatch.setenv(name, value)
    assert main(["run", "--config", "/nonexistent.yaml"]) == 2
    assert capsys.readouterr().err.startswith("csrec-dist: rank 1: ")


def test_what_may_not_be_read_is_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "private" / "runs" / "config.yaml"
    file.parent.mkdir(parents=True)
    file.touch()
    with as_a_colleague(file.parent.parent):
        status = main(["report", str(file.parent)])
    error = capsys.readouterr().err
    assert status == 2
    assert error.count("\n") == 1
    assert f"{file}: permission denied" in error


def test_an_interrupted_command_says_so_and_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within the steps of a training a checkpoint is written first; elsewhere there is nothing to write."""

    def interrupted(folder: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("csrec_dist.runs.verify.verify", interrupted)
    assert main(["verify", "runs/r"]) == 130
    said = capsys.readouterr().err
    assert said.startswith("csrec-dist: interrupted.")
    assert said.count("\n") == 1
