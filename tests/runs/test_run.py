"""A run's folder as its readers see it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from csrec_dist.cli import main
from csrec_dist.errors import UserError
from csrec_dist.files import read_json, write_record
from csrec_dist.labels.format import INDEX_NAME
from csrec_dist.runs.inputs import protocol
from csrec_dist.runs.run import Record, Run
from csrec_dist.runs.stages.teach import make_way
from tests.helpers.finished_runs import refused
from tests.helpers.run_folders import make_run

READ = """
import json, sys
from csrec_dist.runs.run import Run
run = Run.open(sys.argv[1])
read = [run.config.name, run.require("distill").usage, run.missing, [row.test for row in run.results], run.metrics]
read += [list(run.trainings), run.dataset.num_items]
heavy = [name for name in ("torch", "accelerate", "datasets", "scipy", "deepspeed") if name in sys.modules]
print(json.dumps({"heavy": heavy, "tests": len(read[3]), "models": read[5]}))
"""


def test_reading_a_run_imports_no_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    done = subprocess.run([sys.executable, "-c", READ, str(run)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert read["heavy"] == []
    assert read["models"] == ["base", "student", "teacher-0", "teacher-1"]
    assert read["tests"] == 4


def test_a_run_does_not_adopt_what_it_has_begun_to_make(tmp_path: Path) -> None:
    """Its own unfinished members, with the record of another run's, would let no later start go on."""
    donor, run = Run(tmp_path / "donor"), Run(tmp_path / "run")
    for folder in (donor.folder, run.folder):
        (folder / "teachers/teacher-0").mkdir(parents=True)
    donor.finish("teach", Record({}, {"members": {}}, []))
    assert not run.adopt("teach", donor, ["teachers"])
    assert run.record("teach") is None
    assert not (run.folder / "teachers").is_symlink()
    (run.folder / "teachers/teacher-0").rmdir()
    (run.folder / "teachers").rmdir()
    for _ in range(2):  # a start that was cut off between the link and the record is given again
        assert run.adopt("teach", donor, ["teachers"])
        assert (run.folder / "teachers").resolve() == (donor.folder / "teachers").resolve()
        run.record_file("teach").unlink()


def test_pretrained_members_do_not_take_the_place_of_trained_ones(tmp_path: Path) -> None:
    """A link to another run's member goes, and that run keeps it; one that was trained here is refused."""
    lent, borrowed, taken = (tmp_path / name for name in ("lent", "borrowed", "taken"))
    lent.mkdir()
    write_record(lent / "metrics.json", {"epochs": []})
    borrowed.symlink_to(lent)
    make_way(borrowed)
    assert not borrowed.is_symlink()
    assert read_json(lent / "metrics.json") == {"epochs": []}
    with pytest.raises(UserError, match=r"was trained by this run, and teachers\.pretrained would replace it"):
        make_way(lent)
    taken.mkdir()
    write_record(taken / "metrics.json", {"taken_from": "elsewhere"})
    make_way(taken)
    make_way(tmp_path / "new")


def test_ranks_have_the_options_that_they_were_evaluated_with(run_copy: tuple[list[str], Path]) -> None:
    """Another command may change the config of a finished run, but not how it was evaluated."""
    arguments, folder = run_copy
    before = protocol(Run.open(folder))
    assert before["evaluation.min_rating"] == 4.0
    assert main(["prepare", *arguments, "--set", "evaluation.min_rating=2"]) == 0
    assert protocol(Run.open(folder)) == before


@pytest.mark.parametrize("stage", ["distill", "evaluate"])
def test_labels_that_were_made_again_elsewhere_are_not_taken_for_the_runs_own(
    stage: str, run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, folder = run_copy
    index = folder / "labels" / INDEX_NAME
    index.write_text(json.dumps(json.loads(index.read_text())) + " ")  # sound, and not the one that was recorded
    said = " ".join(refused(capsys, stage, *arguments, "--restart", stage).split())
    assert "is not what the run's record of its labels names" in said
