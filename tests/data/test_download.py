"""Fetching without a network: downloads are replaced, archives are made here."""

import hashlib
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from csrec_dist.data import archives
from csrec_dist.data import download as sources
from csrec_dist.data.archives import FetchError, Site, Wheel, copy_log
from csrec_dist.data.download import SOURCES, fetch, resolve
from csrec_dist.errors import UserError

LOG = b"user_id:token\titem_id:token\n1\t2\n"
MEMBER = "pack/example/ml-100k.inter"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def wheel(tmp_path) -> Path:
    path = tmp_path / "pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("pack/__init__.py", "raise SystemExit('nothing of a wheel may run')")
        file.writestr(MEMBER, LOG)
    return path


@pytest.fixture
def offline(monkeypatch, wheel):
    """ml-100k from the made wheel first, then from a site that never answers."""
    calls: list[str] = []

    def download_wheel(requirement: str, folder: Path) -> Path:
        calls.append(requirement)
        return wheel

    def download(url: str, known_hash: str | None, folder: Path) -> Path:
        calls.append(url)
        raise FetchError("no route to host")

    monkeypatch.setattr(archives, "download_wheel", download_wheel)
    monkeypatch.setattr(archives, "download", download)
    good = Wheel("pack==1.0", digest(wheel.read_bytes()), MEMBER, digest(LOG))
    use(monkeypatch, good)
    return calls, good


def use(monkeypatch, wheel: Wheel) -> None:
    source = replace(SOURCES["ml-100k"], origins=(wheel, Site("https://example.org/ml.zip", "md5:0")))
    monkeypatch.setitem(sources.SOURCES, "ml-100k", source)


def test_fetch_takes_the_first_origin_that_answers(tmp_path, offline):
    calls, _ = offline
    said: list[str] = []
    log = fetch("ml-100k", tmp_path / "data", progress=said.append)
    assert log == tmp_path / "data" / "ml-100k" / "ml-100k.inter"
    assert log.read_bytes() == LOG
    assert calls == ["pack==1.0"]
    assert "redistributed" in said[0]
    assert "https://grouplens.org" in said[0]
    assert json.loads((log.parent / ".source.json").read_text())["sha256"] == digest(LOG)
    assert resolve("ml-100k", tmp_path / "data") == log
    assert fetch("ml-100k", tmp_path / "data") == log
    assert calls == ["pack==1.0"]


@pytest.mark.parametrize("where", ["copy_log", "sha256_file"])
def test_a_fetch_that_was_killed_can_be_repeated(tmp_path, monkeypatch, where):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    source = tmp_path / "u.data"
    source.write_bytes(LOG)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "remove", lambda folder: folder)  # the dead tidy nothing
        patch.setattr(sources, where, killed)
        with pytest.raises(Killed):
            fetch("ml-100k", tmp_path / "data", source=source)
    assert fetch("ml-100k", tmp_path / "data", source=source).read_bytes() == LOG
    assert {path.name for path in (tmp_path / "data/ml-100k").iterdir()} == {"u.data", ".source.json"}


@pytest.mark.parametrize("field", ["sha256", "member_sha256"])
def test_another_content_is_refused_and_every_reason_given(tmp_path, offline, monkeypatch, field):
    _, good = offline
    use(monkeypatch, replace(good, **{field: "0" * 64}))
    with pytest.raises(UserError, match=r"sha256 .*; https://example\.org/ml\.zip: no route to host.*--source FILE"):
        fetch("ml-100k", tmp_path / "data")
    assert [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".whl"] == []
    with pytest.raises(UserError, match="run `csrec-dist fetch ml-100k`"):
        resolve("ml-100k", tmp_path / "data")


def test_a_local_file_or_archive_will_do(tmp_path, wheel):
    log = tmp_path / "mine.inter"
    log.write_bytes(LOG)
    assert fetch("ml-1m", tmp_path / "a", source=log) == tmp_path / "a" / "ml-1m" / "mine.inter"
    assert fetch("ml-100k", tmp_path / "b", source=wheel).read_bytes() == LOG
    with pytest.raises(UserError, match="it contains none of"):
        fetch("yelp", tmp_path / "c", source=wheel)
    with pytest.raises(UserError, match="not a file"):
        fetch("yelp", tmp_path / "c", source=tmp_path / "nowhere")


def test_a_member_of_a_tar_archive_is_copied_under_its_last_name(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(LOG)
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        file.add(log, "../../evil/review.json")
    copied = copy_log(tmp_path / "x.tar", tmp_path / "target", ("review.json",))
    assert (copied, copied.read_bytes()) == (tmp_path / "target" / "review.json", LOG)


@pytest.mark.parametrize("place", [31, 40, -5, -30])
def test_a_corrupt_zip_is_the_users_error(tmp_path, place):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("u.data", b"1\t2\t3\t4\n" * 50)
    data = bytearray(path.read_bytes())
    data[place] ^= 255
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"--source .*x\.zip"):
        fetch("ml-100k", tmp_path / "data", source=path)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file != path]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6])
def test_a_cut_archive_is_the_users_error(tmp_path, kind, share):
    log, path = tmp_path / "u.data", tmp_path / f"x.{kind}"
    log.write_bytes(hashlib.shake_256(b"").digest(20_000))
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.write(log, "u.data")
    else:
        with tarfile.open(path, "w:" + kind.removeprefix("tar").removeprefix(".")) as tarred:
            tarred.add(log, "u.data")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"--source .*x\."):
        fetch("ml-100k", tmp_path / "data", source=path)


def test_what_must_be_downloaded_by_hand_says_where(tmp_path):
    with pytest.raises(UserError, match=r"accept its terms first.*yelp\.com.*fetch yelp --source FILE"):
        fetch("yelp", tmp_path)


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean 'ml-100k'"):
        fetch("ml100k", tmp_path)
    with pytest.raises(UserError, match=r"'ml1m' does not exist \(did you mean 'ml-1m'\?\).*amazon-electronics"):
        resolve("ml1m", tmp_path)
    (tmp_path / "ratings.csv").write_text("x")
    with pytest.raises(UserError, match=r"did you mean 'ratings\.csv'"):
        resolve(str(tmp_path / "rating.csv"), tmp_path)


def test_a_path_that_exists_is_taken_as_it_is(tmp_path):
    assert resolve(str(tmp_path), tmp_path) == tmp_path


def test_pip_is_told_to_download_wheels_only_and_its_failure_is_a_reason(tmp_path, monkeypatch):
    commands = []

    def run(command, **named):
        commands.append(command)
        return type("Done", (), {"returncode": 1, "stderr": "ERROR: first\nERROR: nothing found\n"})()

    monkeypatch.setattr(archives.subprocess, "run", run)
    with pytest.raises(FetchError, match="nothing found"):
        archives.download_wheel("recbole==1.2.1", tmp_path)
    assert {"--no-deps", "--only-binary=:all:", "download"} <= set(commands[0])


def test_the_table_is_complete():
    for source in SOURCES.values():
        assert all((source.about, source.terms, source.members))
        assert source.page.startswith("https://")
        for origin in source.origins:
            assert origin.label
            if isinstance(origin, Wheel):
                assert len(origin.sha256) == len(origin.member_sha256) == 64
