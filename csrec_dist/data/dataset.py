"""A prepared dataset on disk, opened for reading: its sizes and statistics, its rows as streams, its shards."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from csrec_dist.data import BAD_ROWS
from csrec_dist.data.ids import RawIds
from csrec_dist.data.order import EpochOrder, RowSample, refuse_idle_ranks
from csrec_dist.data.shards import KeptGroups, Shard, readable, shard_path
from csrec_dist.data.weights import ExampleWeights
from csrec_dist.errors import UserError, listed, quoted
from csrec_dist.files import has_checksum, read_json, sha256_file

if TYPE_CHECKING:
    import datasets

FORMAT_VERSION = 3
ITEMS, USERS, SEQUENCES, LOG = "items.parquet", "users.parquet", "sequences.parquet", "log.parquet"
PLACES = ("source", "valid_source", "test_source", "path")
"""The options that name files of this machine."""
KEPT_BYTES = 128 << 20
"""Of the rows of a split that epochs keep in memory: about 700,000 windows of 20."""


@dataclass(frozen=True)
class Split:
    """One of train, valid and test: the numbers of rows and examples in each shard."""

    name: str
    shard_rows: tuple[int, ...]
    shard_examples: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """The number of rows in all shards."""
        return sum(self.shard_rows)

    @property
    def num_examples(self) -> int:
        """The number of examples in all shards."""
        return sum(self.shard_examples)

    @cached_property
    def first_examples(self) -> tuple[int, ...]:
        """The id of each shard's first example, followed by the total number of examples."""
        return tuple(accumulate(self.shard_examples, initial=0))


class _StoredSplit(BaseModel):
    shard_rows: tuple[NonNegativeInt, ...]
    shard_examples: tuple[NonNegativeInt, ...]


class Ancestor(BaseModel):
    """A dataset that another one extends: its fingerprints, and how many items and users it has, from 1 on."""

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    id_map_fingerprint: str
    num_items: PositiveInt
    num_users: PositiveInt


class _StoredInfo(BaseModel):
    """The part of dataset.json that a reader needs."""

    num_items: PositiveInt
    num_users: PositiveInt
    num_shards: PositiveInt
    window: PositiveInt
    fingerprint: str
    statistics: dict[str, Any]
    splits: dict[str, _StoredSplit]
    files: dict[str, str] = {}
    extends: tuple[Ancestor, ...] = ()


class Dataset:
    """A prepared dataset folder (dataset.json and one Parquet file per split and shard)."""

    def __init__(self, folder: Path | str) -> None:
        """Read dataset.json. Raises UserError if it is missing, damaged or of another version."""
        if not isinstance(folder, str | Path):
            raise UserError(
                f"Dataset opens the folder of a prepared dataset, not a {type(folder).__name__}; Dataset.prepare makes "
                "one from a table."
            )
        self.folder = Path(folder)
        if not (self.folder / "dataset.json").exists():
            raise UserError(f"{self.folder} is not a prepared dataset: it has no dataset.json. Run `prepare` first.")
        self.info: dict[str, Any] = read_json(self.folder / "dataset.json")
        record = _check(self.info, self.folder)
        self.num_items, self.num_users = record.num_items, record.num_users
        self.num_shards, self.window = record.num_shards, record.window
        self.fingerprint, self.statistics = record.fingerprint, record.statistics
        self.checksums = record.files
        self.extends = record.extends  # the dataset that this one extends, then the one that that one extends, …
        self.splits = {
            name: Split(name, split.shard_rows, split.shard_examples) for name, split in record.splits.items()
        }

    @cached_property
    def items(self) -> RawIds:
        """The raw ids of the items; `list(dataset.items)` has all, `"sku7" in dataset.items` says whether one is."""
        return RawIds(self.file("items.parquet"))

    @cached_property
    def users(self) -> RawIds:
        """The raw ids of the users, as `items`."""
        return RawIds(self.file("users.parquet"))

    @cached_property
    def example_weights(self) -> ExampleWeights | None:
        """How much each training example weighs; None if they weigh alike."""
        if not self.info.get("options", {}).get("weights"):
            return None
        return ExampleWeights(self.splits["train"].first_examples, partial(self.open_shard, "train"))

    @cached_property
    def _kept(self) -> dict[str, KeptGroups]:
        """What epochs keep of each split in memory."""
        return {name: KeptGroups(self.window, KEPT_BYTES) for name in self.splits}

    @cached_property
    def id_map_fingerprint(self) -> str:
        """16 hexadecimal digits that identify the item ids: models with equal ones agree on what items 1, 2, … are."""
        return self.items_sha256[:16]

    @property
    def items_sha256(self) -> str:
        """The checksum of items.parquet."""
        path = self.file(ITEMS)
        return self.checksums[ITEMS] if ITEMS in self.checksums else sha256_file(path)

    def file(self, name: str) -> Path:
        """The path of one of the folder's files, whose checksum is compared when the process asks for it first.

        Raises:
            UserError: the file is missing or damaged.
        """
        if problem := self.problem(name):
            raise UserError(f"{problem} Prepare the dataset again.")
        return self.folder / name

    def problem(self, name: str) -> str | None:
        """What is wrong with one of the folder's files, in a sentence; None where it is sound.

        A folder that `prepare` wrote has the checksum of each; of other files only their existence can be checked.
        """
        path = self.folder / name
        if not path.exists():
            return f"{path} is missing: the dataset folder is not whole."
        with readable(path):
            is_sound = name not in self.checksums or has_checksum(path, self.checksums[name])
        return None if is_sound else f"{path} is damaged: it has another checksum than dataset.json says."

    @property
    def file_names(self) -> list[str]:
        """The names of all files but dataset.json; the log may have been removed, and bad rows are rare."""
        log = [name for name in (LOG, BAD_ROWS) if (self.folder / name).exists()]
        shards = [self.shard_file(split, shard).name for split in self.splits for shard in range(self.num_shards)]
        return [*shards, ITEMS, USERS, SEQUENCES, *log]

    def num_known(self, id_map: str | None) -> int | None:
        """How many of the items, from 1 on, a model with the item ids of this fingerprint knows.

        All of them if they are this dataset's, the first ones if they are those of a dataset that it extends, and None
        for other ids.
        """
        sizes = {each.id_map_fingerprint: each.num_items for each in self.extends}
        return self.num_items if id_map == self.id_map_fingerprint else sizes.get(id_map or "")

    def shard_file(self, split: str, shard: int) -> Path:
        """The Parquet file of one shard."""
        return shard_path(self.folder, split, shard, self.num_shards)

    def open_shard(self, split: str, shard: int) -> Shard:
        """Open one shard for reading by row group. Raises UserError if its file is missing or damaged."""
        return Shard(self.file(self.shard_file(split, shard).name))

    def stream(
        self,
        split: str,
        *,
        batch_size: int | None = None,
        epoch: int | None = None,
        seed: int = 0,
        sample: RowSample | None = None,
        start: int = 0,
        shards: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> "datasets.IterableDataset":
        """The rows of a split as a `datasets.IterableDataset`, read from the shards as elements are asked for.

        With `epoch`, each element is a step: this rank's share of one global batch, in the order that (seed, epoch)
        decides. Every rank gets the same number of steps. Without it, rows come in the order of the files: one by one,
        or `batch_size` at a time. A row has `row`, `user`, `items` and `example_offset`; a batch has the arrays `rows`,
        `users`, `items` [B, L + 1], padded with 0, `lengths`, `example_offsets` [B] and `weights` (0: an empty slot).

        Args:
            batch_size: the number of rows in a global batch (with `epoch`), or in a batch of this stream.
            sample: the rows that an epoch reads; all by default.
            start: the number of elements of an epoch, or of rows in the order of the files, that are skipped unread.
            shards: the shards to read, in this order; all by default. Rank r reads r, r + world_size, … of them.

        Raises:
            UserError: the split or rank does not exist, or an epoch has no `batch_size`.
        """
        from csrec_dist.data import stream  # not at the top, because importing datasets takes seconds

        if split not in self.splits:
            raise UserError(f"{self.folder} has no split {quoted(split)}; it has {listed(self.splits)}.")
        for name, value, least in (("batch_size", batch_size, 1), ("epoch", epoch, 0)):
            if value is not None and (not isinstance(value, Integral) or value < least):
                raise UserError(f"{name} is a whole number of at least {least}, not {quoted(value)}.")
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} of {world_size} was asked for; ranks are 0 to world_size - 1.")
        refuse_idle_ranks(self.num_shards, self.splits["train"].num_rows, world_size)
        files = stream.FileRows(partial(self.open_shard, split), self.splits[split].shard_rows)
        elements: stream.Elements
        if batch_size is None:
            if epoch is not None:
                raise UserError("The order of an epoch is one of batches: give batch_size beside epoch.")
            elements = files
        elif epoch is None:
            elements = stream.FileBatches(files, batch_size, self.window)
        else:
            order = EpochOrder(files.shard_rows, batch_size, seed, epoch, sample)
            elements = stream.EpochBatches(files.open_shard, order, self.window, self._kept[split])
        selected = range(self.num_shards) if shards is None else shards
        return stream.iterable(elements, selected[rank::world_size], split, start)

    def sequences(self, users: Iterable[int] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each user with all of the user's items in the filtered log, oldest first [length].

        The rows of the splits have fewer items: their windows have a limited length, and after a temporal split nothing
        follows the targets. One row group is in memory at a time.

        Args:
            users: numbers of users (1…), whose row groups alone are read; they come in ascending order. All by default.
        """
        path = self.file(SEQUENCES)
        with readable(path):
            file = pq.ParquetFile(path, page_checksum_verification=True)
        chosen = np.arange(1, self.num_users + 1) if users is None else np.unique(np.fromiter(users, np.int64))
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        for group, first in enumerate(accumulate(sizes[:-1], initial=1)):  # users are the rows, in order
            rows = chosen[(chosen >= first) & (chosen < first + sizes[group])] - first
            if len(rows) == 0:
                continue
            with readable(path):
                table = file.read_row_group(group, columns=["user", "items"]).combine_chunks()
            items, numbers = table["items"].combine_chunks(), table["user"].to_pylist()
            values, bounds = items.values.to_numpy(), items.offsets.to_numpy()
            for row in rows.tolist():
                yield numbers[row], values[bounds[row] : bounds[row + 1]]

    @cached_property
    def has_true_targets(self) -> bool:
        """Whether the log had a column of true items, so that `true_targets` can be read."""
        return self.open_shard("test", 0).has_true_targets

    def true_targets(self, split: str, shards: Iterable[int] | None = None) -> np.ndarray:
        """The true target of each row of valid or test: the item that the user preferred before any noise.

        Args:
            shards: the shards to read; all by default.

        Returns:
            [rows of the split] int32, indexed by row number (`batch.rows`); 0 in rows of other shards, and if the
            preferred item is not in the dataset.

        Raises:
            UserError: the log had no column of true items.
        """
        if not self.has_true_targets:
            raise UserError(
                f"{self.folder} knows no true targets: prepare a log that has a column for them, and name it with "
                "dataset.columns.true_item."
            )
        targets = np.zeros(self.splits[split].num_rows, np.int32)
        for shard in range(self.num_shards) if shards is None else shards:
            rows, shard_targets = self.open_shard(split, shard).true_targets()
            targets[rows] = shard_targets
        return targets


def _check(info: Any, folder: Path) -> _StoredInfo:
    """The content of dataset.json, validated. Raises UserError if it is of another version or damaged."""
    version = info.get("format_version") if isinstance(info, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder} has dataset format {version}; this version reads {FORMAT_VERSION}. Prepare it again."
        )
    try:
        return _StoredInfo.model_validate(info)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{folder / 'dataset.json'} is damaged: {place}: {first['msg']}. Prepare the dataset again."
        ) from None


def without_places(info: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a dataset.json for others to read: of the log's files the names alone, not where they lay."""
    names = {key: Path(info["options"][key]).name for key in PLACES if info.get("options", {}).get(key)}
    public = {**info, "options": {**info.get("options", {}), **names}}
    if "name" in info.get("source", {}):
        public["source"] = {**info["source"], "name": Path(info["source"]["name"]).name}
    return public
