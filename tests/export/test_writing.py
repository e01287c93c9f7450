"""An export's folder: what it may replace, and what is refused before anything is written."""

import sys
from pathlib import Path

import numpy as np
import pytest

from csrec_dist import Recommender, models
from csrec_dist.cli import main
from csrec_dist.errors import UserError
from csrec_dist.export.formats import WRITERS, Written
from csrec_dist.export.programs import portable
from csrec_dist.files import read_json
from csrec_dist.models import SequentialModel, config_class
from tests.helpers.finished_runs import content, refused
from tests.helpers.run_folders import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is not evaluated: its metrics are made up."""
    run = make_run(tmp_path_factory.mktemp("export"), method="base")
    (run / "evaluate.done.json").unlink()
    return run


@pytest.fixture
def recommender(run: Path) -> Recommender:
    return Recommender.from_pretrained(run)


def test_the_command_says_what_was_checked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--format", "pt2", "-n", "4"]) == 0
    said = capsys.readouterr().out
    assert f"wrote {run}/export/pt2" in said
    assert "checked 60 lists after 30 histories: equal to the model's, 0 of " in said
    assert read_json(run / "export/pt2/export.json")["top_n"] == 4


def test_an_export_replaces_an_export_and_nothing_else(recommender: Recommender, tmp_path: Path) -> None:
    recommender.export(tmp_path / "out", "pt2", top_n=99)
    assert read_json(tmp_path / "out/export.json")["top_n"] == recommender.model.num_items
    recommender.export(tmp_path / "out", "pt2", top_n=2)
    assert read_json(tmp_path / "out/export.json")["top_n"] == 2
    (tmp_path / "out/notes.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"holds an export, and notes\.txt besides"):
        recommender.export(tmp_path / "out", "pt2")
    assert (tmp_path / "out/notes.txt").read_text() == "years of work"
    for name, text in (("notes.txt", "years of work"), ("export.json", '{"format": 7}'), ("export.json", "7")):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        (other / name).write_text(text)
        with pytest.raises(UserError, match="exists and holds no export"):
            recommender.export(other, "pt2")
        assert (other / name).read_text() == text


def test_what_differs_from_the_model_is_not_written(
    recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: SequentialModel, folder: Path, top_n: int, index: str) -> Written:
        (folder / "wrong.bin").write_text("1")
        return Written(
            lambda histories, _: (np.ones((len(histories), top_n), np.int64), np.ones((len(histories), top_n))), {}, ()
        )

    recommender.export(tmp_path / "out", "pt2")
    before = content(tmp_path)
    monkeypatch.setitem(WRITERS, "pt2", wrong)
    with pytest.raises(UserError, match="do not give the model's lists"):
        recommender.export(tmp_path / "out", "pt2")
    assert content(tmp_path) == before


def test_mistakes_are_named_before_anything_is_written(
    recommender: Recommender, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    for arguments, message in (
        ({"format": "onx"}, r"no format 'onx' \(did you mean 'onnx'\?\); choose one of onnx, pt2, flat, faiss"),
        ({"format": "onnx", "index": "HNSW32"}, "Only the format faiss has an index"),
        ({"format": "pt2", "top_n": 0}, "at least 1 item, not 0"),
        ({"format": "faiss", "index": "tree"}, "faiss makes no index 'tree' of 12 vectors of 8 numbers"),
        ({"format": "faiss", "index": "IDMap,Flat"}, "faiss makes no index 'IDMap,Flat'"),
        ({"format": "pt2", "histories": [["?"]]}, "nothing to check the export with: 1 items of the histories"),
    ):
        with pytest.raises(UserError, match=message):
            recommender.export(folder, **arguments)  # type: ignore[arg-type]
    assert "no index 'tree'" in refused(
        capsys, "export", str(run), "--format", "faiss", "--index", "tree", "--output", str(folder)
    )
    assert not any(tmp_path.iterdir())


def test_a_missing_package_is_named(recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, format in (("faiss", "faiss"), ("onnxscript", "onnx")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"needs the package {module}.*pip install onnx .*faiss-cpu"):
            recommender.export(tmp_path / "out", format)
    assert not any(tmp_path.iterdir())


def test_a_recommender_without_its_dataset_is_checked_with_histories_of_the_caller(
    recommender: Recommender, tmp_path: Path
) -> None:
    recommender.save_pretrained(tmp_path / "saved")
    saved = Recommender.from_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match=r"dataset was not saved with the model\. Give some as histories"):
        saved.export(tmp_path / "out", "pt2")
    items = saved.items.values.to_pylist()
    check = saved.export(tmp_path / "out", "pt2", top_n=3, histories=[items[:2], items[4:5]])["check"]
    assert (check["histories"], check["lists"], check["items"]) == (2, 4, 12)


def test_a_sampler_of_very_many_steps_is_refused() -> None:
    sizes = {"width": 8, "inner_width": 8, "num_steps": 60}
    for steps, is_refused in ((None, True), (51, True), (50, False)):
        config = config_class("dreamrec").model_validate({**sizes, "sampling_steps": steps})
        model = models.build(config, 9, 5, 0)
        if is_refused:
            with pytest.raises(UserError, match=rf"samples in {steps or 60} steps"):
                portable(model)
        else:
            assert not portable(model).training


def test_exporting_leaves_the_model_alone(recommender: Recommender, tmp_path: Path) -> None:
    recommender.model.train()
    before = {name: tensor.clone() for name, tensor in recommender.model.state_dict().items()}
    recommender.export(tmp_path / "out", "pt2", top_n=3)
    assert recommender.model.training
    assert all(parameter.requires_grad for parameter in recommender.model.parameters())
    assert all((before[name] == tensor).all() for name, tensor in recommender.model.state_dict().items())
