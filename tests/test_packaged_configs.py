"""The configs that come with the package: their list, their copies, and what they are found by."""

from pathlib import Path

import pytest

from csrec_dist.cli import main
from csrec_dist.config import load_config
from csrec_dist.errors import UserError
from csrec_dist.experiments.study.spec import load_study
from csrec_dist.packaged_configs import KINDS, PackagedConfig, configs_folder, copy_config, packaged_configs

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = list(packaged_configs())
STUDIES = [config for config in CONFIGS if config.kind == "studies"]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def copied(name: str) -> list[Path]:
    assert main(["init", name]) == 0
    return sorted(path for path in Path().rglob("*") if path.is_file())


def test_every_config_of_a_checkout_is_packaged_under_a_name_of_its_own() -> None:
    assert configs_folder() == ROOT / "configs"
    files = {path for kind in KINDS for path in (ROOT / "configs" / kind).iterdir() if path.is_file()}
    assert {config.path for config in CONFIGS} == files
    assert len({config.name for config in CONFIGS}) == len(files)


def test_the_list_says_what_each_config_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [config.name for config in CONFIGS]
    assert [line.partition(":")[0] for line in lines if not line.startswith("  ")] == list(KINDS)
    [demo] = [line for line in lines if line.startswith("  demo ")]
    assert demo.endswith("and its baseline, in a few minutes on two CPU cores")
    assert all(len(line.split()) > 4 for line in lines if line.startswith("  ") and "zero" not in line)


def test_a_config_is_copied_as_it_is(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert copied("demo") == [Path("demo.yaml")]
    assert Path("demo.yaml").read_bytes() == (ROOT / "configs/experiments/demo.yaml").read_bytes()
    assert capsys.readouterr().out == "wrote demo.yaml\nnext: csrec-dist run --config demo.yaml\n"
    assert load_config("demo.yaml").name == "demo"


@pytest.mark.parametrize("study", STUDIES, ids=lambda each: each.name)
def test_a_study_is_copied_with_all_that_it_reads(study: PackagedConfig, empty: Path) -> None:
    copied(study.name)
    copy = load_study(Path(f"{study.name}.yaml"))
    original = load_study(study.path)
    assert [entry.config for entry in copy.entries(Path("runs"), {})] == [
        entry.config for entry in original.entries(Path("runs"), {})
    ]


def test_a_study_takes_the_runs_of_another_with_it(empty: Path) -> None:
    files = ["base/lastfm.yaml", "history_length.yaml", "table3_lastfm.yaml"]
    assert copied("history_length") == [Path(name) for name in files]


def test_a_file_of_the_user_stays_as_it_is(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied("demo")
    assert main(["init", "demo"]) == 0  # the same once more
    Path("demo.yaml").write_text("name: mine\n")
    assert main(["init", "demo"]) == 2
    assert "demo.yaml is already there, with other content; move it away" in capsys.readouterr().err
    assert Path("demo.yaml").read_text() == "name: mine\n"


def test_an_unknown_name_is_met_with_the_nearest(empty: Path) -> None:
    with pytest.raises(
        UserError, match=r"named 'table3_lastfn' comes with csrec_dist \(did you mean 'table3_lastfm'\?\)"
    ):
        copy_config("table3_lastfn", empty)
    assert not list(empty.iterdir())


def test_what_is_in_the_folder_goes_before_a_config_of_the_package(empty: Path, small_log: Path) -> None:
    (empty / "demo").mkdir()
    (empty / "demo/log.csv").write_bytes(small_log.read_bytes())
    assert main(["init", "demo", "--yes"]) == 0
    assert load_config("demo.yaml").dataset.source == "demo"


def test_a_copy_takes_no_option_of_a_log(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "demo", "--set", "dataset.window=9"]) == 2
    assert "demo is copied into this folder as it is; options are for logs" in capsys.readouterr().err
    assert not list(empty.iterdir())
