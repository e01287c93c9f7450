"""Top-n lists of a run's student as Parquet, with the raw ids of users and items."""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csrec_dist.data.dataset import Dataset
from csrec_dist.data.ids import RawIds
from csrec_dist.distributed import Runtime
from csrec_dist.distributed.catalog import catalog_rows
from csrec_dist.distributed.groups import ALONE
from csrec_dist.distributed.joining import processes
from csrec_dist.errors import UserError, quoted
from csrec_dist.evaluation.per_row import part_path
from csrec_dist.files import atomic_path, parse_json, require_replaceable
from csrec_dist.recommend.ranked import BATCH_SIZE, History, Ranked, rank
from csrec_dist.recommend.raw_histories import KnownItems, said_of_skips
from csrec_dist.recommend.recommender import Recommender

SURROGATE = re.compile("[\ud800-\udfff]")


def recommend(
    run_folder: Path | str,
    n: int = 10,
    output: Path | None = None,
    histories: Path | None = None,
    exclude_seen: bool = False,
    batch_size: int = BATCH_SIZE,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the n items that the run's student scores highest for every history; return the path of the Parquet file.

    Its columns are user, items (best first) and scores (logits). The histories come from `histories`, a
    file of JSON lines {"user": …, "items": [raw ids, oldest first]}; by default they are everything each user of the
    dataset ever had, including validation and test targets and what followed them. Of a long history the model reads
    the latest items. Raw ids that the dataset does not know are skipped and counted. Memory holds one batch and the
    id maps.

    The ranks of a launch share out the histories, and the item table: each has a slice of it. The file is the same.

    Args:
        output: default recommendations.parquet in the run's folder.
        exclude_seen: leave out all items of the history, including those older than what the model reads.
        say: receives one line about what was written and what was skipped.

    Raises:
        UserError: the run has no student, a line is not a history, no item is known, n is not in 1…V, or `output`
            is not a file, or a file with other content.
    """
    output = output or Path(run_folder) / "recommendations.parquet"
    with processes() as ranks:
        group = ranks.world if isinstance(ranks, Runtime) else ALONE
        ranks.on_main(lambda: _refuse_foreign(output))
        recommender = Recommender.of_run(run_folder, group)
        dataset, items = recommender.dataset, recommender.items
        assert dataset is not None, "a run has a dataset"
        source = _FileHistories(histories, items) if histories else _DatasetHistories(dataset)
        share = source.share(group.rank, group.size, batch_size)
        lists = rank(recommender.model, share, n, exclude_seen=exclude_seen, batch_size=batch_size)
        path = output if group.size == 1 else part_path(output, group.rank)
        with atomic_path(path) as temporary:
            of_rank = _write(temporary, lists, items, _schema(source, items)), *source.skips
            num_lists, *skips = (sum(each) for each in zip(*ranks.gather(of_rank), strict=True))
            skipped = said_of_skips(str(histories), *skips) if histories else ""
            if num_lists == 0:
                raise UserError(
                    f"There is nothing to recommend: {skipped or 'there is no history'}. Name items by the ids of "
                    "the raw log, as in the dataset's items.parquet."
                )
        if group.size > 1:
            group.barrier()
            ranks.on_main(lambda: _join(output, group.size))
        if ranks.is_main:
            few = "up to " if exclude_seen else ""
            say(f"wrote {num_lists:,} lists of {few}{n} items" + (f"; {skipped}" if skipped else ""))
    return output


def _write(path: Path, lists: Iterable[Ranked], items: RawIds, schema: pa.Schema) -> int:
    """Write lists, batch by batch; how many they are."""
    num_lists = 0
    with pq.ParquetWriter(path, schema) as writer:
        for ranked in lists:
            writer.write_table(_table(ranked, items, schema))
            num_lists += len(ranked.users)
    return num_lists


def _join(output: Path, num_ranks: int) -> None:
    """Put the ranks' lists one below the other, a batch in memory at a time, and remove their files.

    A launch of more ranks that was killed may have left others beside them.
    """
    schema = pq.read_schema(part_path(output, 0))
    with atomic_path(output) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for rank in range(num_ranks):
            with pq.ParquetFile(part_path(output, rank)) as part:
                for batch in range(part.num_row_groups):
                    writer.write_table(part.read_row_group(batch))
    shutil.rmtree(part_path(output, 0).parent)


def _refuse_foreign(output: Path) -> None:
    """UserError for an existing file that holds no lists, and for what is no file."""
    require_replaceable(output)
    if not output.exists():
        return
    try:
        names = pq.read_schema(output).names
    except (pa.ArrowException, OSError):
        names = []
    if not {"items", "scores"} <= set(names):
        raise UserError(
            f"{output} exists and does not hold recommendations. Give another --output, or move the file away."
        )


class _DatasetHistories:
    """Everything each user of the dataset ever had, by user."""

    skips = (0, 0)

    def __init__(self, dataset: Dataset) -> None:
        self._dataset, self._users = dataset, dataset.users
        self.user_type = self._users.values.type

    def share(self, rank: int, num_ranks: int, batch_size: int) -> Iterator[History]:
        """The histories of a rank's users, who follow each other: as many whole batches as the other ranks have."""
        batches = catalog_rows(-(-self._dataset.num_users // batch_size), num_ranks)[rank]
        users = range(batches.start * batch_size, min(batches.stop * batch_size, self._dataset.num_users))
        for user, items in self._dataset.sequences(np.arange(users.start, users.stop) + 1):
            yield self._users.values[user - 1].as_py(), items.tolist()


class _FileHistories:
    """Histories from a file of JSON lines. An id is an integer or a string; 7 and "7" are the same item."""

    def __init__(self, path: Path, items: RawIds) -> None:
        self._path, self._known = path, KnownItems(items, str(path))
        are_integers = [isinstance(user, int) and -(2**63) <= user < 2**63 for user, _ in self._lines()]
        self._num_lines, self.user_type = len(are_integers), pa.int64() if all(are_integers) else pa.string()

    @property
    def skips(self) -> tuple[int, int]:
        """How many items of the share were unknown, and how many histories had no known item."""
        return self._known.num_unknown, self._known.num_skipped

    def share(self, rank: int, num_ranks: int, batch_size: int) -> Iterator[History]:
        """The histories of a rank's lines, which follow each other."""
        lines = catalog_rows(self._num_lines, num_ranks)[rank]
        for user, items in islice(self._lines(), lines.start, lines.stop):
            if known := self._known.of(items):
                yield (user if self.user_type == pa.int64() else str(user)), known

    def _lines(self) -> Iterator[tuple[int | str, list[int | str]]]:
        if not self._path.is_file():
            raise UserError(f"{self._path} is not a file; give a file of JSON lines, each with a user and items.")
        with open(self._path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parse_history(line, f"{self._path}, line {number}")


def _parse_history(line: bytes, place: str) -> tuple[int | str, list[int | str]]:
    try:
        value = parse_json(line)
    except ValueError:
        raise UserError(f"{place} is not JSON; each line needs a user and a list of items.") from None
    fits = isinstance(value, dict) and _is_id(value.get("user")) and isinstance(value.get("items"), list)
    if not fits or not all(map(_is_id, value["items"])):
        raise UserError(
            f"{place} is not a history: {quoted(line.decode(errors='replace').strip())}; each line needs a user and a "
            'list of items, all integers or strings, such as {"user": 7, "items": [12, 5]}.'
        )
    return value["user"], value["items"]


def _is_id(value: Any) -> bool:
    """Whether a value of JSON is an integer or a string; half of a surrogate pair is none."""
    if isinstance(value, str):
        return not SURROGATE.search(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _schema(source: _DatasetHistories | _FileHistories, items: RawIds) -> pa.Schema:
    lists = {"items": pa.list_(items.values.type), "scores": pa.list_(pa.float32())}
    return pa.schema({"user": source.user_type, **lists})


def _table(ranked: Ranked, items: RawIds, schema: pa.Schema) -> pa.Table:
    """One batch of lists."""
    offsets = pa.array(np.concatenate([[0], ranked.lengths.cumsum()]), pa.int32())
    columns = [
        pa.array(ranked.users, schema.field("user").type),
        pa.ListArray.from_arrays(offsets, items.of(ranked.items)),
        pa.ListArray.from_arrays(offsets, pa.array(ranked.scores)),
    ]
    return pa.table(columns, schema=schema)
