"""The stream: the order of the files or of an epoch, by shards and ranks, from any position, and what composes."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csrec_dist.data import dataset as dataset_module
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.order import RowSample
from csrec_dist.data.shards import RowBlock, Shard
from csrec_dist.errors import UserError

Stream = Callable[..., datasets.IterableDataset]
KINDS: dict[str, dict[str, Any]] = {
    "rows": {},
    "batches": {"batch_size": 4},
    "epoch": {"batch_size": 6, "epoch": 2, "seed": 11},
    "sampled epoch": {"batch_size": 6, "epoch": 0, "seed": 3, "sample": RowSample(0.5, 1)},
}


@pytest.fixture(params=KINDS)
def stream(request: pytest.FixtureRequest, small_dataset: Path) -> Stream:
    """A stream of the training rows, of each kind."""
    return partial(Dataset(small_dataset).stream, "train", **KINDS[request.param])


def plain(elements: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Elements as Python's lists and numbers."""
    return [{name: as_python(value) for name, value in element.items()} for element in elements]


def as_python(value: Any) -> Any:
    if isinstance(value, list):
        return [as_python(part) for part in value]
    return value.tolist() if isinstance(value, np.ndarray | torch.Tensor) else value


def row_numbers(elements: Iterable[dict[str, Any]]) -> list[list[int]]:
    """The rows of each element, without empty slots."""
    return [
        [element["row"]] if "row" in element else element["rows"][element["weights"] > 0].tolist()
        for element in elements
    ]


def on_disk(folder: Path, split: str) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted(folder.glob(f"{split}-*.parquet"))])


def test_rows_in_the_order_of_the_files_are_what_the_files_hold(small_dataset: Path) -> None:
    found = list(Dataset(small_dataset).stream("test"))
    columns = ["row", "user", "items", "example_offset"]
    assert found == on_disk(small_dataset, "test").select(columns).to_dicts()


def test_batches_in_the_order_of_the_files_go_on_over_shards_and_are_padded_to_the_window(small_dataset: Path) -> None:
    dataset = Dataset(small_dataset)
    batches = list(dataset.stream("test", batch_size=4, shards=[3, 1]))
    expected = [pl.read_parquet(dataset.shard_file("test", shard))["row"].to_list() for shard in (3, 1)]
    rows = row_numbers(batches)
    assert list(chain(*rows)) == list(chain(*expected))
    assert {len(part) for part in rows[:-1]} == {4}
    assert {batch["items"].shape[1] for batch in batches} == {dataset.window}


def test_an_epoch_streams_every_row_of_the_files_once(small_dataset: Path) -> None:
    dataset = Dataset(small_dataset)
    orders = [list(chain(*row_numbers(dataset.stream("train", batch_size=6, epoch=epoch)))) for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(on_disk(small_dataset, "train")["row"].to_list())


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_together_hold_the_same_global_batches(small_dataset: Path, world_size: int) -> None:
    stream = partial(Dataset(small_dataset).stream, "train", **KINDS["epoch"])
    shares = [row_numbers(stream(rank=rank, world_size=world_size)) for rank in range(world_size)]
    alone = [sorted(step) for step in row_numbers(stream())]
    assert alone == [sorted(chain(*parts)) for parts in zip(*shares, strict=True)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_divide_all_rows_among_them(stream: Stream, world_size: int) -> None:
    shares = [list(chain(*row_numbers(stream(rank=rank, world_size=world_size)))) for rank in range(world_size)]
    assert sorted(chain(*shares)) == sorted(chain(*row_numbers(stream())))


def test_features_are_declared_and_are_those_of_each_element(stream: Stream) -> None:
    features = stream().features
    assert set(features) == set(stream().column_names)
    for element in stream().take(3):
        assert element.keys() == features.keys()
        table = datasets.Dataset.from_list(plain([element]), features=features)
        assert plain(table) == plain([element]), "encoding loses nothing"
        for name, value in element.items():
            if isinstance(value, np.ndarray):
                feature = features[name]
                while not isinstance(feature, datasets.Value):
                    feature = feature.feature
                assert feature.dtype == str(value.dtype)


def test_features_are_known_without_reading(small_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text((small_dataset / "dataset.json").read_text())
    dataset = Dataset(tmp_path)
    for options in KINDS.values():
        stream = dataset.stream("train", **options)
        assert stream.features is not None
        assert stream.num_shards == dataset.num_shards
        with pytest.raises(UserError, match="not whole"):
            next(iter(stream))


@pytest.mark.parametrize("world_size", [1, 5])
def test_whole_shards_split_by_node_are_those_of_the_ranks(stream: Stream, world_size: int) -> None:
    """At these numbers of ranks every version of datasets deals out whole shards."""
    for rank in range(world_size):
        split, own = split_dataset_by_node(stream(), rank, world_size), stream(rank=rank, world_size=world_size)
        assert split.num_shards == own.num_shards == 5 // world_size
        assert plain(split) == plain(own)


@pytest.mark.parametrize("world_size", [2, 3])
def test_shards_dealt_out_by_datasets_are_those_of_the_ranks(stream: Stream, world_size: int) -> None:
    for rank in range(world_size):
        dealt, own = stream().shard(world_size, rank, contiguous=False), stream(rank=rank, world_size=world_size)
        assert dealt.num_shards == own.num_shards == len(range(rank, 5, world_size))
        assert plain(dealt) == plain(own)


def test_workers_of_a_loader_read_whole_shards(small_dataset: Path) -> None:
    rows = Dataset(small_dataset).stream("train")
    loader = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=2)
    assert sorted(element["row"] for element in loader) == sorted(on_disk(small_dataset, "train")["row"].to_list())


@pytest.mark.parametrize("options", [{}, {"batch_size": 4}])
def test_a_position_among_rows_is_not_shared_out_among_workers(small_dataset: Path, options: dict[str, Any]) -> None:
    def by(workers: int, **more: Any) -> torch.utils.data.DataLoader:
        stream = Dataset(small_dataset).stream("train", **options, **more)
        if state:
            stream.load_state_dict(state)
        return torch.utils.data.DataLoader(stream, batch_size=None, num_workers=workers)

    state: dict[str, Any] = {}
    whole = [row for rows in row_numbers(by(1)) for row in rows]
    assert [row for rows in row_numbers(by(1, start=8)) for row in rows] == whole[8:]
    with pytest.raises(UserError, match="position 8 of all its shards cannot be shared out"):
        list(by(2, start=8))
    stream = Dataset(small_dataset).stream("train", **options)
    next(iter(stream))
    state = stream.state_dict()
    num_read = options.get("batch_size", 1)
    assert [row for rows in row_numbers(by(1)) for row in rows] == whole[num_read:]
    with pytest.raises(UserError, match="state is that of a stream of the shards 0 1 2 3 4"):
        list(by(2))


def test_an_epoch_is_not_shared_out_among_workers(small_dataset: Path) -> None:
    stream = Dataset(small_dataset).stream("train", batch_size=6, epoch=0)
    expected = row_numbers(stream)
    assert row_numbers(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=1)) == expected
    with pytest.raises(UserError, match="is a step"):
        list(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2))


COMPOSED: dict[str, Callable[[datasets.IterableDataset], datasets.IterableDataset]] = {
    "as it is": lambda stream: stream,
    "torch": lambda stream: stream.with_format("torch"),
    "map": lambda stream: stream.map(lambda element: {"more": 1}),
    "batch": lambda stream: stream.batch(3),
    "take": lambda stream: stream.take(9),
    "skip": lambda stream: stream.skip(2),
    "map, torch, take": lambda stream: stream.map(lambda element: {"more": 1}).with_format("torch").take(9),
}


@pytest.mark.parametrize("composed", COMPOSED)
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_state_resumes_with_exactly_what_is_left(
    small_dataset: Path, kind: str, composed: str, data: st.DataObject
) -> None:
    world_size = data.draw(st.integers(1, 3))
    place = {"rank": data.draw(st.integers(0, world_size - 1)), "world_size": world_size}
    stream = partial(Dataset(small_dataset).stream, "train", **KINDS[kind], **place)
    whole, position = plain(COMPOSED[composed](stream())), 0
    resumed = COMPOSED[composed](stream())
    for stop in sorted(data.draw(st.sets(st.integers(1, len(whole)), max_size=2))):
        for element in resumed:
            assert plain([element]) == [whole[position]]
            position += 1
            if position == stop:
                break
        state = resumed.state_dict()
        resumed = COMPOSED[composed](stream())
        resumed.load_state_dict(state)
    assert plain(resumed) == whole[position:]


def test_resuming_reads_no_shard_that_lies_before(small_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(small_dataset)
    stream = dataset.stream("train")
    last = dataset.splits["train"].num_rows - 1
    for number, _ in enumerate(stream):
        if number == last - 1:
            break
    opened: list[int] = []
    real = Dataset.open_shard

    def open_shard(dataset: Dataset, split: str, shard: int) -> Any:
        opened.append(shard)
        return real(dataset, split, shard)

    monkeypatch.setattr(Dataset, "open_shard", open_shard)
    again = dataset.stream("train")
    again.load_state_dict(stream.state_dict())
    assert len(list(again)) == 1
    assert opened == [4]


@pytest.mark.parametrize("start", [1, 3])
def test_a_stream_entered_at_a_position_goes_on_as_the_unbroken_one(stream: Stream, start: int) -> None:
    place = {"rank": 1, "world_size": 2}
    rows = list(chain(*row_numbers(stream(**place, start=start))))
    assert rows == list(chain(*row_numbers(stream(**place))))[-len(rows) :]
    state = stream(**place, start=start)
    assert plain(state)
    state.load_state_dict(stream(**place, start=start).state_dict())
    assert list(chain(*row_numbers(state))) == rows


def test_two_iterations_at_once_do_not_disturb_each_other(stream: Stream) -> None:
    shared = stream()
    pairs = list(zip(shared, shared, strict=True))
    assert plain(first for first, _ in pairs) == plain(second for _, second in pairs) == plain(stream())


def test_elements_are_mapped_formatted_taken_skipped_and_batched(stream: Stream) -> None:
    whole = plain(stream())
    assert plain(stream().take(3)) == whole[:3]
    assert plain(stream().skip(2)) == whole[2:]
    assert plain(stream().map(lambda element: {"more": 1}))[0] == whole[0] | {"more": 1}
    formatted = list(stream().with_format("torch"))
    assert all(isinstance(value, torch.Tensor) for value in formatted[0].values())
    assert plain(formatted) == whole
    batched = list(stream().batch(2))
    assert as_python(batched[0]["items"])[1] == whole[1]["items"]
    assert len(batched) == -(-len(whole) // 2)


def test_the_order_of_an_epoch_is_not_shuffled_and_that_of_the_files_by_shards(small_dataset: Path) -> None:
    dataset = Dataset(small_dataset)
    epoch, rows = dataset.stream("train", **KINDS["epoch"]), dataset.stream("train")
    before = plain(epoch)
    for stream in (epoch, rows):
        stream.set_epoch(3)
    assert plain(epoch) == before
    shuffled = [element["row"] for element in rows]
    shards = [pl.read_parquet(dataset.shard_file("train", shard))["row"].to_list() for shard in range(5)]
    order = sorted(shards, key=lambda shard: shuffled.index(shard[0]))
    assert order != shards
    assert shuffled == list(chain(*order))


def test_the_files_are_a_plain_streamable_hugging_face_dataset(small_dataset: Path) -> None:
    files = sorted(str(path) for path in small_dataset.glob("train-*.parquet"))
    hugging_face = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert [row["items"] for row in hugging_face] == [row["items"] for row in Dataset(small_dataset).stream("train")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, r"no split 'dev'; it has train, valid, test"),
        ({"rank": 2, "world_size": 2}, r"rank 2 of 2"),
        ({"world_size": 6}, "6 processes share 5 shards"),
        ({"epoch": 0}, "give batch_size beside epoch"),
    ],
)
def test_what_cannot_be_streamed_is_refused(small_dataset: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dataset(small_dataset).stream(**{"split": "train"} | options)


@pytest.mark.parametrize("kept_bytes", [0, 2000, 1 << 20])
def test_epochs_read_again_only_what_does_not_stay_in_memory(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    """And whatever stays, every epoch is the same as from a dataset that was just opened."""
    monkeypatch.setattr(dataset_module, "KEPT_BYTES", kept_bytes)
    dataset, num_read = Dataset(small_dataset), 0
    real = Shard.read_group

    def read_group(shard: Shard, group: int) -> RowBlock:
        nonlocal num_read
        num_read += 1
        return real(shard, group)

    monkeypatch.setattr(Shard, "read_group", read_group)
    counts = []
    for epoch in (0, 1, 0):
        num_read = 0
        elements = list(dataset.stream("train", batch_size=6, epoch=epoch, seed=3))
        counts.append(num_read)
        fresh = list(Dataset(small_dataset).stream("train", batch_size=6, epoch=epoch, seed=3))
        for element, expected in zip(elements, fresh, strict=True):
            for name, column in expected.items():
                np.testing.assert_array_equal(element[name], column)
    first, second, third = counts
    assert second == third
    least, most = {0: (first, first), 2000: (1, first - 1), 1 << 20: (0, 0)}[kept_bytes]
    assert least <= second <= most
