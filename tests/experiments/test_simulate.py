"""Simulated logs: the law of what is preferred and observed, and the files."""

import itertools
import json
import math
import weakref
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from csrec_dist.data.dataset import Dataset
from csrec_dist.data.noise import NOISE_KINDS
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.errors import UserError
from csrec_dist.experiments import simulate as module
from csrec_dist.experiments import world as world_module
from csrec_dist.experiments.simulate import load_world, oracle_ranks, simulate, simulation_options
from csrec_dist.experiments.world import Chunk, World, draw


def world_of(**values) -> World:
    return World.make(simulation_options(values))


def whole(world: World) -> Chunk:
    """All chunks as one."""
    chunks = [world.chunk(number) for number in range(world.options.num_chunks)]
    return Chunk(*(np.concatenate(parts) for parts in zip(*(vars(chunk).values() for chunk in chunks), strict=True)))


def plain_probabilities(world: World, taste: list[float]) -> list[float]:
    """P(j | s) by its definition, in loops over plain numbers."""
    options = world.options

    def score(factors: np.ndarray) -> float:
        return math.exp(options.sharpness * sum(u * float(v) for u, v in zip(taste, factors, strict=True)))

    starts = [c * options.num_items // options.clusters for c in range(options.clusters + 1)]
    clusters = [list(range(a, b)) for a, b in itertools.pairwise(starts)]
    exposure = world.exposure.tolist()
    of_clusters = [
        sum(exposure[j] for j in items) * score(world.cluster_factors[c]) for c, items in enumerate(clusters)
    ]
    found = []
    for weight, items in zip(of_clusters, clusters, strict=True):
        scores = [exposure[j] * score(world.item_factors[j]) for j in items]
        found += [weight / sum(of_clusters) * score / sum(scores) for score in scores]
    return found


@pytest.mark.parametrize("clusters", [1, 3, 7])
def test_true_probabilities_are_the_definition(clusters):
    world = world_of(num_items=23, num_clusters=clusters, width=3, num_users=10, num_interactions=60)
    tastes = world.users(0).tastes[:20]
    expected = [plain_probabilities(world, taste) for taste in tastes.tolist()]
    assert world.true_probabilities(tastes) == pytest.approx(np.array(expected), rel=1e-12)
    assert sorted(world.exposure, reverse=True) == pytest.approx([rank**-0.5 for rank in range(1, 24)], rel=1e-6)


@pytest.mark.parametrize("clusters", [1, 4])
def test_frequencies_are_the_true_probabilities(clusters):
    """One user whose taste stays: 30,000 draws of one distribution."""
    world = world_of(
        num_interactions=30_000, num_users=1, num_items=20, num_clusters=clusters, drift=0, sharpness=1, width=4
    )
    made = whole(world)
    assert np.abs(made.tastes - made.tastes[0]).max() == 0
    expected = np.array(plain_probabilities(world, made.tastes[0].tolist())) * 30_000
    assert expected.min() > 5
    assert stats.chisquare(np.bincount(made.true_items, minlength=21)[1:], expected).pvalue > 1e-3


def test_frequencies_while_tastes_drift():
    world = world_of(num_interactions=20_000, num_users=100, num_items=30, num_clusters=5, drift=0.2)
    made = whole(world)
    probabilities = world.true_probabilities(made.tastes)
    deviation = np.bincount(made.true_items, minlength=31)[1:] - probabilities.sum(0)
    assert (np.abs(deviation) / np.sqrt((probabilities * (1 - probabilities)).sum(0))).max() < 4.5


@pytest.mark.parametrize("num", [1, 2, 16, 37, 200])
def test_evenly_spaced_draws_hit_in_proportion(num, monkeypatch):
    """Over group and block borders: each index as often as its probability says, but for rounding."""
    monkeypatch.setattr(world_module, "BLOCK_NUMBERS", 3000)
    random = np.random.default_rng(num)
    factors, weights, taste = random.normal(size=(num, 3)), random.random(num) + 0.1, random.normal(size=3)
    scores = [
        w * math.exp(sum(a * b for a, b in zip(taste, f, strict=True))) for w, f in zip(weights, factors, strict=True)
    ]
    drawn = draw(np.tile(taste, (4000, 1)), factors, weights, (np.arange(4000) + 0.5) / 4000)
    assert np.abs(np.bincount(drawn, minlength=num) - 4000 * np.array(scores) / sum(scores)).max() <= 1 + 1e-6
    assert (np.diff(drawn) >= 0).all()


def test_extreme_tastes_do_not_overflow():
    factors = np.array([[1.0], [-1.0], [0.5]])
    tastes, draws = np.array([[5000.0], [-5000.0]]), np.full(2, 1 - 2**-53)
    assert draw(tastes, factors, np.ones(3), draws).tolist() == [0, 1]


def test_argmax_does_not_depend_on_how_many_users_are_looked_at_at_once(monkeypatch):
    options = {"choice": "argmax", "num_items": 40, "num_users": 30, "num_interactions": 200}
    together = whole(world_of(**options))
    monkeypatch.setattr("csrec_dist.experiments.world.BLOCK_PROBABILITIES", 3 * 40)
    assert whole(world_of(**options)).true_items.tolist() == together.true_items.tolist()


@pytest.mark.parametrize("clusters", [1, 3])
def test_of_argmax_each_item_is_the_most_probable_that_is_new(clusters):
    """Also for a user who has been through the whole catalog."""
    options = {
        "num_items": 9,
        "num_clusters": clusters,
        "width": 3,
        "num_users": 6,
        "num_interactions": 60,
        "drift": 0.2,
    }
    made = whole(world := world_of(choice="argmax", **options))
    assert max(np.bincount(made.users)) > 9
    preferred: dict[int, list[int]] = {}
    for user, item, taste in zip(made.users, made.true_items, made.tastes.tolist(), strict=True):
        before = preferred.setdefault(int(user), [])
        if len(before) == 9:
            before.clear()
        probabilities = plain_probabilities(world, taste)
        assert item == max(set(range(1, 10)) - set(before), key=lambda new: probabilities[new - 1])
        before.append(int(item))
    ranks = oracle_ranks(world, made, np.arange(60))
    assert ranks[0].tolist() == [1] * 60
    noisy = whole(world_of(choice="argmax", noise_rate=0.3, **options))
    assert noisy.true_items.tolist() == made.true_items.tolist()
    assert 0 < (noisy.items != noisy.true_items).sum() < 40


@pytest.mark.parametrize("drift", [0.0, 0.1, 1.0])
def test_tastes_stay_standard_normal_and_drift(drift):
    made = whole(world_of(num_interactions=60_000, num_users=3000, num_items=2, drift=drift, width=4, num_clusters=1))
    same = made.users[1:] == made.users[:-1]
    before, after = made.tastes[:-1][same], made.tastes[1:][same]
    assert abs(made.tastes.mean()) < 0.05
    assert made.tastes.var() == pytest.approx(1, abs=0.05)
    assert (before * after).mean() == pytest.approx(1 - drift, abs=0.05)


sizes = st.tuples(st.integers(1, 40), st.integers(5, 60), st.integers(2, 40)).map(
    lambda t: {"num_users": t[0], "num_interactions": max(t[0] * t[1], 10) + t[2] % t[0], "num_items": t[2]}
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes, st.integers(70, 400), st.integers(0, 5), st.sampled_from(NOISE_KINDS))
def test_every_log_is_whole(monkeypatch, size, chunk, seed, kind):
    monkeypatch.setattr(world_module, "CHUNK_INTERACTIONS", chunk)
    world = world_of(**size, width=2, seed=seed, noise_rate=0.5, noise_kind=kind)
    made = whole(world)
    assert len(made.users) == size["num_interactions"]
    users, counts = np.unique(made.users, return_counts=True)
    assert users.tolist() == list(range(1, size["num_users"] + 1))
    assert counts.min() >= 5
    same = np.diff(made.users) == 0
    assert (np.diff(made.users) >= 0).all()
    assert (np.diff(made.timestamps)[same] > 0).all()
    for items in (made.items, made.true_items):
        assert items.dtype == np.int32
        assert 1 <= items.min() <= items.max() <= size["num_items"]


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_noise_has_its_rate_and_law(kind):
    options = {"num_interactions": 40_000, "num_users": 800, "num_items": 150, "num_clusters": 5}
    world = world_of(**options, noise_rate=0.25, noise_kind=kind)
    made = whole(world)
    replaced = made.items != made.true_items
    assert stats.binomtest(int(replaced.sum()), 40_000, 0.25).pvalue > 1e-3
    weights = {"uniform": np.ones(150), "popularity": world.exposure, "position": np.zeros(150)}[kind].copy()
    if kind == "position":
        weights[np.argsort(-world.exposure)[:100]] = 1 / np.arange(1, 101)
    was = np.bincount(made.true_items[replaced], minlength=151)[1:]
    expected = sum(
        n * np.where(np.arange(150) == i, 0, weights) / (weights.sum() - weights[i]) for i, n in enumerate(was)
    )
    observed = np.bincount(made.items[replaced], minlength=151)[1:]
    assert observed[weights == 0].sum() == 0
    assert stats.chisquare(observed[weights > 0], expected[weights > 0]).pvalue > 1e-3


def test_noise_changes_what_is_observed_and_nothing_else():
    options = {"num_interactions": 5000, "num_users": 100, "num_items": 50, "num_clusters": 5}
    clean = whole(world_of(**options))
    assert (clean.items == clean.true_items).all()
    places = []
    for rate, kind in ((0.1, "uniform"), (0.4, "popularity"), (1.0, "position")):
        noisy = whole(world_of(**options, noise_rate=rate, noise_kind=kind))
        for name in ("users", "timestamps", "true_items", "tastes"):
            assert (getattr(noisy, name) == getattr(clean, name)).all()
        places.append(set(np.flatnonzero(noisy.items != noisy.true_items).tolist()))
    assert places[0] < places[1] < places[2] == set(range(5000))


SMALL = {"num_interactions": 3000, "num_users": 150, "num_items": 60, "num_clusters": 6, "noise_rate": 0.2}


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """About 500 interactions a chunk, two chunks a part."""
    monkeypatch.setattr(world_module, "CHUNK_INTERACTIONS", 500)
    monkeypatch.setattr(module, "PART_CHUNKS", 2)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_the_files_hold_the_world(tmp_path, small_chunks):
    truth = simulate(simulation_options(SMALL), tmp_path / "sim")
    assert list(files_of(tmp_path / "sim")) == [
        "clusters.parquet", "items.parquet",
        "log/part-00000.parquet", "log/part-00001.parquet", "log/part-00002.parquet", "truth.json",
    ]  # fmt: skip
    log = pl.read_parquet(tmp_path / "sim" / "log" / "*.parquet")
    made = whole(world_of(**SMALL))
    for name, column in {
        "user": "users",
        "item": "items",
        "timestamp": "timestamps",
        "true_item": "true_items",
    }.items():
        assert (log[name].to_numpy() == getattr(made, column)).all()
    assert log.schema == {"user": pl.Int32, "item": pl.Int32, "timestamp": pl.Int64, "true_item": pl.Int32}
    assert truth == json.loads((tmp_path / "sim" / "truth.json").read_text())
    assert truth["num_replaced"] == (made.items != made.true_items).sum()
    world = load_world(tmp_path / "sim")
    assert world.options == world_of(**SMALL).options
    assert (world.true_probabilities(made.tastes[:9]) == world_of(**SMALL).true_probabilities(made.tastes[:9])).all()
    clusters = pl.read_parquet(tmp_path / "sim" / "items.parquet")["cluster"].to_list()
    assert clusters == [c for c in range(1, 7) for _ in range(10)]


def test_bytes_depend_on_the_options_only(tmp_path, small_chunks):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        simulate(simulation_options(SMALL | {"seed": seed}), tmp_path / name)
    one, two, other = (files_of(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert all(one[name] != other[name] for name in one)


def test_one_chunk_is_in_memory_at_a_time(tmp_path, small_chunks, monkeypatch):
    chunks: list[weakref.ref[Chunk]] = []
    most, sizes = [], []
    make = World.chunk

    def counted(world: World, number: int) -> Chunk:
        most.append(sum(chunk() is not None for chunk in chunks))
        chunk = make(world, number)
        chunks.append(weakref.ref(chunk))
        sizes.append(len(chunk.users))
        return chunk

    monkeypatch.setattr(World, "chunk", counted)
    simulate(simulation_options(SMALL), tmp_path / "sim")
    assert len(sizes) == 6
    assert max(sizes) <= 500
    assert max(most) <= 1  # the one before, while the next is made


def test_a_simulated_log_is_prepared_with_its_truth(tmp_path, small_chunks):
    simulate(simulation_options(SMALL), tmp_path / "sim")
    options = DatasetOptions(source=str(tmp_path / "sim" / "log"), windows="last", min_interactions=1)
    info = prepare(options, tmp_path / "out")
    dataset = Dataset(tmp_path / "out")
    log = pl.read_parquet(tmp_path / "sim" / "log" / "*.parquet")
    last = log.group_by("user", maintain_order=True).last()
    raw = pl.read_parquet(tmp_path / "out" / "items.parquet")["raw"].to_list()
    found = [raw[item - 1] if item else None for item in dataset.true_targets("test").tolist()]
    assert found == [item if item in raw else None for item in last["true_item"].to_list()]
    statistics = info["statistics"]
    wrong = sum(a != b for a, b in last["item", "true_item"].rows())
    assert statistics["test_targets_not_true"] + statistics["test_true_targets_unknown"] == wrong
    assert stats.binomtest(wrong, 150, 0.2).pvalue > 1e-3


def test_the_oracle_ranks_by_the_truth():
    world = world_of(**SMALL)
    made = world.chunk(0)
    rows = np.array([0, 5, 17])
    for kind, items in enumerate((made.true_items, made.items)):
        for place, row in enumerate(rows):
            probabilities = plain_probabilities(world, made.tastes[row].tolist())
            order = sorted(range(60), key=lambda item: -probabilities[item])
            assert oracle_ranks(world, made, rows)[kind][place] == 1 + order.index(items[row] - 1)


def test_an_oracle_without_doubt_is_always_right(tmp_path):
    options = {"num_interactions": 1000, "num_users": 100, "num_items": 8, "sharpness": 50, "width": 32}
    truth = simulate(simulation_options(options), tmp_path / "sim")
    assert truth["oracle"] == {
        "examples": 100,
        "true": {"recall@10": 1.0, "ndcg@10": pytest.approx(1, abs=0.05)},
        "observed": truth["oracle"]["true"],
    }


def test_a_folder_is_not_overwritten_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    with pytest.raises(UserError, match="not an empty folder"):
        simulate(simulation_options(SMALL), tmp_path / "full")

    def full_disk(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "write_json", full_disk)
    with pytest.raises(OSError, match="no space"):
        simulate(simulation_options(SMALL), tmp_path / "sim")
    assert [file.name for file in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"num_users": 100, "num_interactions": 499},
            "100 users have 4.99 interactions each; each needs between 5 and",
        ),
        ({"num_users": 1, "num_interactions": 10**6}, "1 users have 1e\\+06 interactions each"),
        ({"num_items": 5, "num_clusters": 6}, "6 clusters are more than 5 items"),
        ({"drift": 2, "seed": -1}, "drift: .*; seed: "),
        ({"noise_kind": "white"}, "noise_kind: .*'position'"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_options_are_one_sentence(values, message):
    with pytest.raises(UserError, match=message):
        simulation_options(values)


def test_a_folder_that_is_no_world_says_so(tmp_path):
    with pytest.raises(UserError, match=r"truth\.json does not exist"):
        load_world(tmp_path)
    (tmp_path / "truth.json").write_text("{}")
    with pytest.raises(UserError, match="is not of format 1"):
        load_world(tmp_path)
    simulate(simulation_options(SMALL), tmp_path / "sim")
    (tmp_path / "sim" / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is not whole"):
        load_world(tmp_path / "sim")
