"""What docs/security.md says is not trusted is not executed, followed or sent."""

import ast
import io
import json
import os
import pickle
import shutil
import socket
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from csrec_dist import Recommender, models
from csrec_dist.cli import main
from csrec_dist.config import load_config
from csrec_dist.data.download import fetch
from csrec_dist.errors import UserError
from csrec_dist.hub import DOWNLOADED, table
from csrec_dist.report.document import Cell, Page, Section, Table, Text, to_html
from csrec_dist.serve import build_app
from tests.helpers.hub import COMMIT, local_hub, said
from tests.helpers.run_folders import make_run
from tests.helpers.study_files import STUDY

PACKAGE = Path(__file__).resolve().parents[1] / "csrec_dist"


class Planted:
    """A pickle of it makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("security"), method="base")
    (run / "evaluate.done.json").unlink()  # its metrics are made up
    return run


def calls() -> list[tuple[Path, ast.Call, str]]:
    """All calls in the package with the dotted names of what they call."""
    return [
        (path, node, ast.unparse(node.func))
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_no_call_reads_pickles_runs_a_shell_or_evaluates_text() -> None:
    """torch's collectives of objects pickle them; numpy's `load` may."""
    forbidden = ("np.load", "numpy.load", "torch.load", "eval", "exec", "os.system", "os.popen", "compile")
    objects = ("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list")
    for path, node, name in calls():
        assert name not in forbidden, (path, node.lineno)
        assert name.rpartition(".")[2] not in objects, (path, node.lineno)
        assert not any(keyword.arg == "shell" for keyword in node.keywords), (path, node.lineno)
        assert not any(keyword.arg == "trust_remote_code" for keyword in node.keywords), (path, node.lineno)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.pt"])
def test_pickled_weights_are_not_read(run: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(run / "student", tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    (tmp_path / "model" / name).write_bytes(pickle.dumps(Planted(tmp_path / "executed")))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        models.load(tmp_path / "model")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("command", ["prepare --config {file}", "study {file}", "tune --config {file} --space {file}"])
def test_an_object_of_python_in_yaml_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(f"{STUDY}\nname: !!python/object/apply:os.mkdir [{tmp_path / 'executed'}]\n")
    assert main(command.format(file=file).split()) == 2
    assert "is not valid YAML" in capsys.readouterr().err
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(file)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("member", ["../../u.data", "/u.data", "a/../../../u.data"])
def test_a_member_of_an_archive_is_written_into_its_folder_alone(tmp_path: Path, kind: str, member: str) -> None:
    content, archive = b"1\t2\t3\t4\n", tmp_path / "archive"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.writestr(member, content)
    else:
        with tarfile.open(archive, "w") as tarred:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tarred.addfile(info, io.BytesIO(content))
    log = fetch("ml-100k", tmp_path / "a/b/c/data", source=archive)
    assert log == tmp_path / "a/b/c/data/ml-100k/u.data"
    assert list(tmp_path.rglob("u.data")) == [log]


def test_text_of_a_log_is_no_markup_in_a_page_or_a_card() -> None:
    text = "<script>alert(1)</script>"
    blocks = (Text(text), Table((text,), ((Cell(text),),)))
    page = Page(text, {text: text}, (Section(text, blocks),))
    assert "<script>" not in to_html(page)
    assert "<script>" not in table(["name"], [[text]])


def test_a_commit_of_the_hub_is_taken_without_what_is_no_part_of_a_recommender(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with local_hub() as (endpoint, repositories):
        push = f"Recommender.from_pretrained({str(run)!r}).push_to_hub('me/shop', token='hf_right')"
        said(endpoint, tmp_path, push)
        for name in ("pytorch_model.bin", "modeling.py", "optimizer.pt", "data/x.pkl"):
            repositories["me/shop"][name] = pickle.dumps(Planted(tmp_path / "executed"))
        pulled = said(
            endpoint,
            tmp_path / "there",
            f"Recommender.from_pretrained('me/shop@{COMMIT}')",
            "Recommender.from_pretrained('me/shop')",
            "Recommender.from_pretrained('me/shop').push_to_hub('me/shop@main')",
        )
    assert pulled[0] == pulled[1]
    assert pulled[0].startswith("result Recommender(sasrec: ")
    assert pulled[2] == "error A repository of the Hub is named OWNER/NAME, not 'me/shop@main'."
    snapshot = next((tmp_path / "there").rglob("snapshots")) / COMMIT
    assert {path.name for path in snapshot.rglob("*")} == {
        "model.safetensors", "config.json", "items.parquet", "metrics.json", "README.md"
    }  # fmt: skip
    assert not any(pattern.endswith((".bin", ".py", ".pt", ".pkl", "*")) for pattern in DOWNLOADED)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_the_service_listens_at_the_given_interface_alone(
    run: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import uvicorn

    from csrec_dist.serve import serve

    seen: list[tuple[str, int]] = []

    def look(_: uvicorn.Server, sockets: list[socket.socket]) -> None:
        seen.extend(each.getsockname() for each in sockets)

    monkeypatch.setattr(uvicorn.Server, "run", look)
    serve(Recommender.from_pretrained(run), host, 0, say=lambda line: None)
    assert [address for address, _ in seen] == [host]


def test_the_service_takes_no_files_and_no_code(run: Path) -> None:
    described = json.dumps(build_app(Recommender.from_pretrained(run)).openapi())
    assert "multipart" not in described
    assert "octet-stream" not in described
