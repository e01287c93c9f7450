"""Prepared datasets and soft labels on the Hub and back, against a server of this machine, with their cards."""

import json
import shutil
from pathlib import Path

import datasets
import polars as pl
import pytest
import torch
import yaml

from csrec_dist import Dataset, load_labels
from csrec_dist.data.card import dataset_card
from csrec_dist.data.dataset import LOG
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.data.reshard import reshard
from csrec_dist.errors import UserError
from csrec_dist.files import read_json
from csrec_dist.hub import plain, table
from csrec_dist.labels.card import label_card
from csrec_dist.labels.contents import info
from tests.helpers.hub import local_hub, said
from tests.helpers.shop import fit_shop

PULL = "__import__('huggingface_hub').snapshot_download({name!r}, repo_type='dataset')"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    """The dataset and the folder of a run on it."""
    folder = tmp_path_factory.mktemp("hub")
    fit_shop(folder)
    return Dataset(folder / "data/shop"), folder / "runs/shop"


def parts_of(card: str) -> tuple[dict, str]:
    """The head and the body of a card."""
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def cells(body: str, first: str) -> list[str]:
    """The other cells of the row that begins with `first`."""
    line = next(line for line in body.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("| ").split("|")][1:]


def test_a_dataset_goes_to_the_hub_and_back(shop: tuple[Dataset, Path], tmp_path: Path) -> None:
    data, _ = shop
    (data.folder / "notes.txt").write_text("not of the dataset\n")
    (tmp_path / "secret.place").mkdir()
    log = tmp_path / "secret.place/log.csv"
    log.write_text("user,item,time\na,b,soon\n" + "".join(f"u{n % 3},i{n % 7},{n}\n" for n in range(40)))
    options = DatasetOptions(source=str(log), min_interactions=1, on_bad_rows="skip")
    prepare(options, tmp_path / "of_file")
    with local_hub() as (endpoint, repositories):
        of_file = f"Dataset({str(tmp_path / 'of_file')!r}).push_to_hub('me/of_file', token='hf_right')"
        push = f"Dataset({str(data.folder)!r}).push_to_hub('me/shop', token='hf_right')"
        _, pushed, pulled = said(endpoint, tmp_path, of_file, push, PULL.format(name="me/shop"))
        for name, content in repositories["me/of_file"].items():
            assert b"secret.place" not in content, f"{name} says where the log lay"
        assert {LOG, "bad_rows.jsonl"}.isdisjoint(repositories["me/of_file"])
        pushed_info = json.loads(repositories["me/of_file"]["dataset.json"])
        assert pushed_info["options"]["source"] == pushed_info["source"]["name"] == "log.csv"
        assert pushed == f"result {endpoint}/datasets/me/shop"
        files = repositories["me/shop"]
    expected = {path.name for path in data.folder.iterdir()} - {"notes.txt", LOG} | {"README.md"}
    assert set(files) == expected
    again = Dataset(pulled.removeprefix("result "))
    assert again.info == data.info
    assert list(again.stream("test")) == list(data.stream("test"))


def test_the_hub_and_datasets_read_the_splits_by_the_card(shop: tuple[Dataset, Path], tmp_path: Path) -> None:
    data, _ = shop
    folder = tmp_path / "shop"
    shutil.copytree(data.folder, folder)
    (folder / "README.md").write_text(dataset_card(data), encoding="utf-8")
    read = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in read.items()} == {
        name: split.num_rows for name, split in data.splits.items()
    }
    _, body = parts_of(dataset_card(data))
    named = {line.split(" | ")[0].removeprefix("| ") for line in body[body.index("## Columns") :].splitlines()[4:10]}
    assert {plain(column) for column in read["test"].column_names} == named


def test_a_dataset_that_is_pushed_again_leaves_no_old_rows(shop: tuple[Dataset, Path], tmp_path: Path) -> None:
    data, _ = shop
    reshard(data, tmp_path / "resharded", 2 * data.num_shards)
    with local_hub() as (endpoint, repositories):
        pushes = [
            f"Dataset({str(folder)!r}).push_to_hub('me/shop', token='hf_right')"
            for folder in (data.folder, tmp_path / "resharded", data.folder)
        ]
        *_, pulled = said(endpoint, tmp_path, *pushes[:2], PULL.format(name="me/shop"))
        assert_rows(pulled, data, tmp_path / "first")
        repositories["me/shop"]["notes.txt"] = b"the owner's"
        *_, pulled = said(endpoint, tmp_path, *pushes[2:], PULL.format(name="me/shop"))
        assert_rows(pulled, data, tmp_path / "second")
        assert "notes.txt" in repositories["me/shop"]


def assert_rows(pulled: str, data: Dataset, cache: Path) -> None:
    read = datasets.load_dataset(pulled.removeprefix("result "), cache_dir=str(cache))
    assert {name: len(split) for name, split in read.items()} == {n: split.num_rows for n, split in data.splits.items()}


def test_a_card_of_a_dataset_says_where_it_is_from(shop: tuple[Dataset, Path]) -> None:
    data, _ = shop
    head, body = parts_of(dataset_card(data))
    assert head["library_name"] == "csrec_dist"
    assert cells(body, "log")[0].endswith(f"SHA-256 {data.info['source']['sha256']}")
    assert cells(body, "kept") == ["180 interactions, 20 users, 7 items"]
    assert cells(body, "fingerprint") == [data.fingerprint]
    rows = pl.read_parquet(data.folder / "train-*.parquet")
    examples = int((rows["items"].list.len() - 1).sum())
    assert cells(body, "train") == [f"{len(rows):,}", f"{examples:,}"]
    assert not any(f"c{customer}" in body.split() for customer in range(20))  # no user is named


def test_labels_go_to_the_hub_and_back(shop: tuple[Dataset, Path], tmp_path: Path) -> None:
    _, run = shop
    with local_hub() as (endpoint, repositories):
        push = f"load_labels({str(run)!r}).push_to_hub('me/labels', private=True, token='hf_right')"
        pushed, pulled = said(endpoint, tmp_path, push, PULL.format(name="me/labels"))
        assert pushed == f"result {endpoint}/datasets/me/labels"
        assert set(repositories["me/labels"]) == {path.name for path in (run / "labels").iterdir()} | {"README.md"}
    there, here = load_labels(pulled.removeprefix("result ")), load_labels(run)
    for name, field in here.fields(torch.arange(5)).items():
        assert torch.equal(there.fields(torch.arange(5))[name], field)


def test_a_card_of_labels_says_what_they_are_and_lose(shop: tuple[Dataset, Path]) -> None:
    data, run = shop
    head, body = parts_of(label_card(run / "labels"))
    index = read_json(run / "labels/label_cache.index.json")
    assert head["library_name"] == "csrec_dist"
    assert cells(body, "form") == ["factored, float16"]
    assert cells(body, "dataset")[0].startswith(f"fingerprint {data.fingerprint}; item ids ")
    assert cells(body, "teacher-0") == ["8", index["members"][0]["fingerprint"]]
    assert f"{info(run / 'labels')['bytes_per_example']:,.0f} bytes an example" in body
    [error] = index["measured"]["errors"]
    assert cells(body, "factored, float16")[2] == f"{error['divergence']:.2e}"


def test_what_goes_wrong_on_the_way_is_said(shop: tuple[Dataset, Path], tmp_path: Path) -> None:
    data, run = shop
    with local_hub() as (endpoint, repositories):
        lines = said(
            endpoint,
            tmp_path,
            f"Dataset({str(data.folder)!r}).push_to_hub('me/shop', token='hf_wrong')",
            f"load_labels({str(run)!r}).push_to_hub('labels')",
        )
        assert not repositories
    assert lines[0].startswith(f"error me/shop could not be pushed ({endpoint}): ")
    assert lines[1] == "error A repository of the Hub is named OWNER/NAME, not 'labels'."


def test_where_the_hub_may_not_be_asked_that_is_said(
    shop: tuple[Dataset, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"me/shop could not be pushed .*offline mode"):
        shop[0].push_to_hub("me/shop")


def test_a_card_of_no_cache_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no soft-label cache"):
        label_card(tmp_path)


def test_text_of_a_log_is_no_markup() -> None:
    assert table(["name"], [["<b>*a*</b> | [x](y)\n`z`"]]).splitlines()[2] == (
        r"| &lt;b&gt;\*a\*&lt;/b&gt; \| \[x\](y) \`z\` |"
    )
