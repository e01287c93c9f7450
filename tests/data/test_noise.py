"""Noise: its laws, the share of training interactions it replaces, and what it leaves alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from csrec_dist.config import parse_config
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.noise import LIST_LENGTH, NOISE_KINDS, NoiseSource, noise_law
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import identify, prepare
from csrec_dist.errors import UserError


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """p-value; cells that are never expected must never occur."""
    assert (observed[expected == 0] == 0).all()
    kept = expected > 0
    return float(stats.chisquare(observed[kept], expected[kept] * observed.sum() / expected.sum()).pvalue)


def test_the_laws_by_hand():
    popularity = np.array([2, 0, 5, 2, 1])
    assert noise_law("uniform", popularity) == pytest.approx([0.2] * 5)
    assert noise_law("popularity", popularity) == pytest.approx([0.2, 0, 0.5, 0.2, 0.1])
    places = np.array([1 / 2, 0, 1, 1 / 3, 1 / 4])
    assert noise_law("position", popularity) == pytest.approx(places / places.sum())


def test_the_list_of_position_noise_ends():
    law = noise_law("position", np.arange(1, 301))
    assert np.flatnonzero(law).tolist() == list(range(300 - LIST_LENGTH, 300))
    assert law[-1] / law[-100] == pytest.approx(100)


weights = st.lists(st.integers(0, 9), min_size=2, max_size=8).filter(lambda w: sum(x > 0 for x in w) > 1)


@settings(max_examples=60, deadline=None)
@given(weights, st.data())
def test_others_are_the_law_without_the_item(weights, data):
    """Evenly spaced draws hit each item in proportion to its weight, the item's own place cut out."""
    item, num = data.draw(st.integers(1, len(weights))), 5000
    source = NoiseSource(np.array(weights) / sum(weights))
    drawn = source.others(np.full(num, item, np.int32), (np.arange(num) + 0.5) / num)
    assert drawn.dtype == np.int32
    found = np.bincount(drawn, minlength=len(weights) + 1)[1:]
    left = np.array([0 if k == item - 1 else w for k, w in enumerate(weights)])
    assert np.abs(found - num * left / left.sum()).max() <= 1 + 1e-6


@pytest.mark.parametrize("draw", [0.0, np.nextafter(1.0, 0.0)])
def test_the_ends_of_the_draws_are_items_of_the_law(draw):
    source = NoiseSource(np.array([0, 0.3, 0.3, 0.4, 0]))
    drawn = source.others(np.arange(1, 6), np.full(5, draw))
    assert drawn.tolist() == ([2, 3, 2, 2, 2] if draw == 0 else [4, 4, 4, 3, 4])


def test_a_law_of_one_item_is_refused():
    with pytest.raises(ValueError, match="one item"):
        NoiseSource(np.array([0.0, 1.0]))


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """500 users with 12 to 43 of 60 items, each item at most once a user, skewed popularity."""
    random = np.random.default_rng(3)
    shares = 1 / np.arange(1, 61)
    lines = ["user,item,rating,time"]
    for user in range(500):
        items = random.choice(60, random.integers(12, 44), replace=False, p=shares / shares.sum())
        lines += [f"u{user},i{item},{random.integers(1, 6)},{time}" for time, item in enumerate(items)]
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def prepared(log: Path, folder: Path, noise: dict | None, **options) -> Dataset:
    prepare(DatasetOptions(source=str(log), noise=noise, **{"window": 10, "num_shards": 4, **options}), folder)
    return Dataset(folder)


def rows(dataset: Dataset, split: str) -> pl.DataFrame:
    """A split's rows by number, whatever the shards."""
    files = [pl.read_parquet(dataset.shard_file(split, shard)) for shard in range(dataset.num_shards)]
    return pl.concat(files).sort("row")


def replacements(clean: Dataset, noisy: Dataset) -> dict[tuple[int, int], int]:
    """(user, item of the log) -> item shown in training; each user has an item once, so this names an interaction."""
    shown: dict[tuple[int, int], int] = {}
    for (user, was), (_, now) in zip(
        *(rows(d, "train").select("user", "items").rows() for d in (clean, noisy)), strict=True
    ):
        for before, after in zip(was, now, strict=True):
            assert shown.setdefault((user, before), after) == after
    return shown


@pytest.mark.parametrize("kind", NOISE_KINDS)
@pytest.mark.parametrize(
    "options", [{"windows": "disjoint"}, {"windows": "paper"}, {"windows": "last"}, {"split": "temporal"}], ids=str
)
def test_a_share_of_the_training_interactions_and_nothing_else(log, tmp_path, kind, options):
    clean = prepared(log, tmp_path / "clean", None, **options)
    noisy = prepared(log, tmp_path / "noisy", {"rate": 0.3, "kind": kind}, **options)
    for split in ("valid", "test"):
        for shard in range(4):
            tables = [pq.read_table(each.shard_file(split, shard)).drop_columns("leaked") for each in (clean, noisy)]
            assert tables[0].equals(tables[1])
    assert rows(clean, "train").drop("items").equals(rows(noisy, "train").drop("items"))
    shown = replacements(clean, noisy)
    replaced = sum(was != now for (_, was), now in shown.items())
    statistics = noisy.statistics
    assert (statistics["training_interactions"], statistics["replaced_training_interactions"]) == (len(shown), replaced)
    assert stats.binomtest(replaced, len(shown), 0.3).pvalue > 1e-4
    counts = Counter(shown.values())
    table = pl.read_parquet(tmp_path / "noisy" / "items.parquet")
    assert table["count"].to_list() == [counts[item] for item in table["item"]]
    targets = Counter(item for items in rows(noisy, "train")["items"].to_list() for item in items[1:])
    assert table["targets"].to_list() == [targets[item] for item in table["item"]]
    assert clean.fingerprint != noisy.fingerprint
    assert "replaced_training_interactions" not in clean.statistics


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_what_comes_in_follows_the_law(log, tmp_path, kind):
    clean = prepared(log, tmp_path / "clean", None)
    noisy = prepared(log, tmp_path / "noisy", {"rate": 0.5, "kind": kind, "seed": 4})
    counts = pl.read_parquet(tmp_path / "clean" / "items.parquet")["count"].to_numpy().astype(float)
    law = {"uniform": np.ones(60), "popularity": counts, "position": np.zeros(60)}[kind]
    if kind == "position":
        law[sorted(range(60), key=lambda item: -counts[item])] = [1 / place for place in range(1, 61)]
    expected, observed = np.zeros(60), np.zeros(60)
    for (_, was), now in replacements(clean, noisy).items():
        if was != now:
            others = np.where(np.arange(60) == was - 1, 0, law)
            expected += others / others.sum()
            observed[now - 1] += 1
    assert chi_square(observed, expected) > 1e-4


def test_seeds_decide_and_shards_do_not(log, tmp_path):
    noise = {"rate": 0.3, "kind": "popularity"}
    one, same = (prepared(log, tmp_path / name, noise) for name in ("one", "same"))
    files = sorted(file.name for file in one.folder.iterdir())
    assert all((one.folder / f).read_bytes() == (same.folder / f).read_bytes() for f in files)
    shards = prepared(log, tmp_path / "shards", noise, num_shards=7)
    dealt = prepared(log, tmp_path / "dealt", noise, seed=5)
    other = prepared(log, tmp_path / "other", noise | {"seed": 1})
    shown = [rows(dataset, "train")["items"].to_list() for dataset in (one, shards, dealt, other)]
    assert shown[0] == shown[1] == shown[2] != shown[3]


def test_more_noise_replaces_the_same_interactions_and_more(log, tmp_path):
    clean = prepared(log, tmp_path / "clean", None)
    little, much = (
        {
            key
            for key, now in replacements(clean, prepared(log, tmp_path / str(r), {"rate": r})).items()
            if key[1] != now
        }
        for r in (0.1, 0.4)
    )
    assert little < much


FINGERPRINT = "01017b2ee49caced"


@pytest.mark.parametrize("noise", [None, {}, {"rate": 0}, {"rate": 0.0, "kind": "position", "seed": 9}])
def test_without_noise_all_is_as_it_ever_was(tmp_path, noise):
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n" + "".join(f"{u},{(u + k) % 9},{k}\n" for u in range(6) for k in range(8)))
    plain, options = DatasetOptions(source=str(path)), DatasetOptions(source=str(path), noise=noise)
    assert "noise" not in options.model_dump()
    assert "true_item" not in options.model_dump()["columns"]
    assert identify(options)["fingerprint"] == FINGERPRINT
    for name, chosen in (("plain", plain), ("same", options)):
        prepare(chosen, tmp_path / name)
    assert all((tmp_path / "same" / f.name).read_bytes() == f.read_bytes() for f in (tmp_path / "plain").iterdir())
    assert pq.read_schema(tmp_path / "plain" / "test-00000-of-00006.parquet").names[-2:] == ["rating", "leaked"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": {"rate": 1.1}}, "less than or equal to 1"),
        ({"noise": {"rate": "much"}}, "noise.rate"),
        ({"noise": {"kind": "white"}}, "'uniform', 'popularity' or 'position'"),
        ({"noise": {"share": 0.1}}, "share"),
        ({"source": None, "path": "a", "noise": {"rate": 0.1}}, "give source instead of path"),
    ],
)
def test_wrong_noise_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        DatasetOptions(**{"source": "a", **options})


def test_a_log_of_one_item_bears_no_noise(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n" + "1,2,3\n" * 6)
    with pytest.raises(UserError, match="are with one item"):
        prepare(DatasetOptions(source=str(path), min_interactions=1, noise={"rate": 0.1}), tmp_path / "out")


def test_the_configuration_takes_noise():
    def parsed(noise: dict | None) -> dict:
        dataset = {"source": "b", "noise": noise}
        return parse_config({"name": "a", "dataset": dataset, "model": {"name": "gru4rec"}}).dump()["dataset"]

    assert parsed({"rate": 0.2})["noise"] == {"rate": 0.2, "kind": "uniform", "seed": 0}
    assert "noise" not in parsed(None)
    with pytest.raises(UserError, match=r"dataset\.noise\.kid: unknown key; did you mean kind"):
        parsed({"kid": "uniform"})


TRUE_LOG = """user,item,true_item
u,a,a
u,b,zz
u,c,a
u,d,b
v,d,c
v,a,a
v,b,b
v,c,rare
w,rare,a
"""


@pytest.fixture
def true_log(tmp_path) -> Path:
    path = tmp_path / "true.csv"
    path.write_text(TRUE_LOG)
    return path


def test_true_targets_are_those_of_the_last_items(true_log, tmp_path):
    options = {"columns": {"timestamp": "none"}, "min_interactions": 2, "k_core": "once", "num_shards": 2}
    prepare(DatasetOptions(source=str(true_log), **options), tmp_path / "out")
    dataset = Dataset(tmp_path / "out")
    numbers = {raw: item for item, raw in pl.read_parquet(tmp_path / "out" / "items.parquet")["item", "raw"].rows()}
    assert "rare" not in numbers
    assert dataset.true_targets("test").tolist() == [numbers["b"], 0]
    assert dataset.true_targets("valid").tolist() == [numbers["a"], numbers["b"]]
    assert rows(dataset, "test")["true_target"].to_list() == [numbers["b"], 0]
    shard = next(shard for shard in range(2) if 1 in rows_of_shard(dataset, shard))
    assert dataset.true_targets("valid", [shard]).tolist() == [0, numbers["b"]]
    found = {k: v for k, v in dataset.statistics.items() if "true" in k}
    assert found == {
        "valid_true_targets_unknown": 0,
        "valid_targets_not_true": 1,
        "test_true_targets_unknown": 1,
        "test_targets_not_true": 1,
    }


def rows_of_shard(dataset: Dataset, shard: int) -> list[int]:
    return dataset.open_shard("valid", shard).true_targets()[0].tolist()


def test_true_targets_where_the_log_has_none(small_dataset):
    with pytest.raises(UserError, match=r"knows no true targets.*dataset\.columns\.true_item"):
        Dataset(small_dataset).true_targets("test")


@pytest.mark.parametrize("dtype", [pl.Int16, pl.Int64, pl.String])
def test_true_items_of_another_type_and_name(tmp_path, dtype):
    items = [5, 6, 7, 8]
    wishes = pl.Series([5, 8, 6, 7], dtype=pl.Int64).cast(dtype)
    frame = pl.DataFrame({"user": [1] * 4, "item": items, "wish": wishes, "time": range(4)})
    frame.write_parquet(tmp_path / "log.parquet")
    options = {"source": str(tmp_path / "log.parquet"), "min_interactions": 1}
    prepare(DatasetOptions(**options, columns={"true_item": "wish"}), tmp_path / "out")
    assert Dataset(tmp_path / "out").true_targets("test").tolist() == [3]
    prepare(DatasetOptions(**options), tmp_path / "plain")
    assert not Dataset(tmp_path / "plain").has_true_targets
    with pytest.raises(UserError, match="did you mean 'wish'"):
        prepare(DatasetOptions(**options, columns={"true_item": "wishes"}), tmp_path / "wrong")
