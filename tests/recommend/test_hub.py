"""A recommender on the Hub and back, against a server of this machine; and its model card."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from csrec_dist import CSRec, Recommender
from csrec_dist.errors import UserError
from csrec_dist.files import read_json
from tests.helpers.hub import local_hub, said
from tests.helpers.shop import MODEL, TRAINING, fit_shop


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    fit_shop(folder, baseline=True)
    return folder / "runs/shop"


def test_a_recommender_goes_to_the_hub_and_back(run: Path, tmp_path: Path) -> None:
    with local_hub() as (endpoint, repositories):
        pushed, pulled = said(
            endpoint,
            tmp_path,
            f"Recommender.from_pretrained({str(run)!r}).push_to_hub('me/shop', token='hf_right')",
            "Recommender.from_pretrained('me/shop').recommend(histories=[['sku1', 'sku2']], top_n=3)['item'].tolist()",
        )
        assert pushed == f"result {endpoint}/me/shop"
        files = repositories["me/shop"]
        assert set(files) == {"model.safetensors", "config.json", "items.parquet", "README.md", "metrics.json"}
        rec = Recommender.from_pretrained(run)
        rec.save_pretrained(tmp_path / "saved")
        assert {name: (tmp_path / "saved" / name).read_bytes() for name in files} == files
        assert pulled == f"result {rec.recommend(histories=[['sku1', 'sku2']], top_n=3)['item'].tolist()}"


def test_a_recommender_that_is_pushed_again_is_the_one_that_is_loaded(run: Path, tmp_path: Path) -> None:
    """Also where the earlier one lay in several files, whose index is read first."""
    with local_hub() as (endpoint, repositories):
        push = f"Recommender.from_pretrained({str(run)!r}).push_to_hub('me/shop', token='hf_right')"
        said(endpoint, tmp_path, push)
        expected = dict(repositories["me/shop"])
        old = dict.fromkeys(("model-00001-of-00002.safetensors", "model.safetensors.index.json"), b"{}")
        repositories["me/shop"] |= old | {"notes.txt": b"the owner's"}
        said(endpoint, tmp_path, push)
        assert repositories["me/shop"] == expected | {"notes.txt": b"the owner's"}


def test_what_goes_wrong_on_the_way_is_said(run: Path, tmp_path: Path) -> None:
    with local_hub() as (endpoint, repositories):
        load = f"Recommender.from_pretrained({str(run)!r})"
        lines = said(
            endpoint,
            tmp_path,
            f"{load}.push_to_hub('me/shop', token='hf_wrong')",
            f"{load}.push_to_hub('me/shop')",
            "Recommender.from_pretrained('me/absent')",
            f"{load}.push_to_hub('shop')",
        )
        assert not repositories
    assert all(line.startswith(f"error me/shop could not be pushed ({endpoint}): ") for line in lines[:2])
    assert "hf auth login" in lines[0]
    assert lines[2].startswith(f"error me/absent is neither a folder here nor could it be downloaded ({endpoint}): ")
    assert lines[3] == "error A repository of the Hub is named OWNER/NAME, not 'shop'."
    [silent] = said(endpoint, tmp_path, f"{load}.push_to_hub('me/shop', token='hf_right')")
    assert silent.startswith(f"error me/shop could not be pushed ({endpoint}): ")


def card_of(run: Path, folder: Path) -> tuple[dict, str]:
    """The head and the body of a saved card."""
    Recommender.from_pretrained(run).save_pretrained(folder)
    _, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


def cells(body: str, first: str) -> list[str]:
    """The other cells of the row that begins with `first`."""
    line = next(line for line in body.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("| ").split("|")][1:]


def test_a_run_whose_ranks_are_gone_has_a_card_without_intervals(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/ranks")
    _, body = card_of(tmp_path / "run", tmp_path / "saved")
    assert "there are no intervals; metrics.json has the means" in body
    assert Recommender.from_pretrained(tmp_path / "saved").items is not None


def test_the_card_has_the_metrics_of_the_run_with_intervals(run: Path, tmp_path: Path) -> None:
    head, body = card_of(run, tmp_path)
    assert head["library_name"] == "csrec_dist"
    metrics = read_json(run / "metrics.json")["models"]
    random = np.random.default_rng(1)
    for name, title in (("student", "CSRec-M student"), ("base", "Base"), ("teachers", "teacher ensemble")):
        table = pl.read_parquet(run / f"ranks/{name}-test.parquet")
        ranks, users = table["rank"].to_numpy(), np.unique(table["user"].to_numpy(), return_inverse=True)[1]
        sizes = np.bincount(users)
        assert sizes.max() > 1
        values = {
            "recall@10": ranks <= 10,
            "ndcg@10": (ranks <= 10) / np.log2(ranks + 1),
            "mrr@10": (ranks <= 10) / ranks,
        }
        for metric, cell in zip(values, cells(body, title), strict=True):
            mean, low, _, high = cell.replace("(", "").replace(")", "").split()
            assert float(mean) == pytest.approx(metrics[name]["test"][metric], abs=5e-5)
            drawn = random.integers(len(sizes), size=(4000, len(sizes)))
            drawn = np.bincount(users, values[metric])[drawn].sum(1) / sizes[drawn].sum(1)
            assert [float(low), float(high)] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), abs=0.02)


def test_the_card_says_what_the_model_was_made_of(run: Path, tmp_path: Path) -> None:
    _, body = card_of(run, tmp_path)
    dataset = read_json(CSRec.load(run).config.dataset.path + "/dataset.json")
    for fact in (
        dataset["source"]["sha256"],
        "180 interactions, 20 users, 7 items",
        "2026-03-01 10:00:00 UTC to 2026-03-09 10:00:00 UTC",
        "the last item of each window",
        "temperature 3, beta 0.5, kl reverse",
        "csrec_dist 0.1.0",
        "soft labels of 2 teachers",
        "histories=[['sku",
        "latest 5 items",
    ):
        assert fact in body
    assert not any(f"c{customer}" in body.split() for customer in range(20))


def test_a_card_of_a_run_that_is_not_evaluated_says_so(run: Path, tmp_path: Path) -> None:
    path = CSRec.load(run).config.dataset.path
    fresh = CSRec("a_b", MODEL, "base", training=TRAINING, output=tmp_path, dataset={"path": path}).fit()
    (fresh.folder / "evaluate.done.json").unlink()
    _, body = card_of(fresh.folder, tmp_path / "saved")
    assert "The run is not evaluated." in body
    assert "trained on one-hot next items alone" in body


def test_a_saved_recommender_may_be_a_teacher(run: Path, tmp_path: Path) -> None:
    Recommender.from_pretrained(run).save_pretrained(tmp_path / "saved")
    path = CSRec.load(run).config.dataset.path
    keys = {"output": tmp_path, "training": TRAINING, "dataset": {"path": path}}
    CSRec("taught", MODEL, teachers={"pretrained": [str(tmp_path / "saved")]}, **keys).fit()
    (tmp_path / "saved/metrics.json").unlink()
    with pytest.raises(UserError, match="does not say which item each row of its table is"):
        CSRec("other", MODEL, teachers={"pretrained": [str(tmp_path / "saved")]}, **keys).fit()
