"""The paper's own data: the numbers of its Table 2 and of the leak."""

import polars as pl
import pytest

from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare


@pytest.fixture
def prepared(test_data, tmp_path):
    """A function from the log's place and options to dataset.json."""

    def run(folder: str, file: str = "interactions.parquet", **options) -> dict:
        source = str(test_data(folder) / file)
        return prepare(DatasetOptions(source=source, num_shards=4, **options), tmp_path / "out")

    return run


@pytest.mark.parametrize("file", ["interactions.parquet", "lastfm_small.csv"])
def test_lastfm_in_the_papers_windows(prepared, file):
    columns = {"timestamp": "none"} if file.endswith(".csv") else {}
    info = prepared("lastfm_csrec", file, windows="paper", window=20, columns=columns)
    statistics = info["statistics"]
    assert (info["num_users"], info["num_items"], statistics["items_in_windows"]) == (1090, 3646, 3646)
    assert (statistics["windows"], statistics["interactions_in_windows"]) == (3173, 57826)
    assert info["splits"]["train"]["num_examples"] == 48307
    assert statistics["leaked_test_targets"] == 438


def test_lastfm_in_disjoint_windows_does_not_leak(prepared):
    info = prepared("lastfm_csrec")
    statistics = info["statistics"]
    assert (statistics["windows"], statistics["interactions_in_windows"]) == (3035, 52196)
    assert info["splits"]["train"]["num_examples"] == 43091
    assert statistics["leaked_test_targets"] == 0


def test_yelp_in_the_papers_windows(prepared):
    statistics = prepared("yelp_s3rec", windows="paper", window=10)["statistics"]
    assert (statistics["windows"], statistics["items_in_windows"]) == (43947, 20033)
    assert statistics["interactions_in_windows"] == 361290


def test_raw_lastfm_becomes_the_shipped_one(prepared):
    statistics = prepared("lastfm_hetrec", "user_taggedartists.dat")["statistics"]
    raw = [statistics[f"raw_{name}"] for name in ("users", "items", "interactions")]
    assert raw == [1892, 12523, 71064]
    assert [statistics[name] for name in ("users", "items", "interactions")] == [1090, 3646, 52551]
    assert statistics["neighbours_at_equal_time"] == pytest.approx(0.87, abs=0.005)


def test_movielens_in_recboles_form_and_as_parquet_agree(prepared, test_data, tmp_path):
    info = prepared("ml100k", "ml-100k.inter")
    statistics = info["statistics"]
    assert [statistics[name] for name in ("users", "items", "interactions")] == [943, 1349, 99287]
    source = str(test_data("ml100k") / "interactions.parquet")
    prepare(DatasetOptions(source=source, num_shards=4), tmp_path / "parquet")
    read = [pl.read_parquet(tmp_path / folder / "items.parquet") for folder in ("out", "parquet")]
    assert read[0]["raw"].dtype == pl.Int64
    assert read[0].drop("item").sort("raw").equals(read[1].drop("item").sort("raw"))
