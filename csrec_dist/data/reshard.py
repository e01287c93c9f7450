"""The rows of a prepared dataset in another number of shards, for more ranks than it was made for."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import fingerprint_of, refuse_to_overwrite
from csrec_dist.data.shards import SplitRows, write_split
from csrec_dist.errors import UserError
from csrec_dist.files import new_folder, parquet_checksums, write_record
from csrec_dist.lock import locked
from csrec_dist.writers import remove_leftovers


def reshard(dataset: Dataset, folder: Path, num_shards: int, progress: Callable[[str], None] | None = None) -> None:
    """Write into `folder` what `prepare` would make of the same log with `dataset.num_shards` = `num_shards`.

    It is another dataset: the order of an epoch and the ids of examples follow from the shards, so its fingerprint is
    another one, and soft labels have to be made again. Memory holds one split.

    Raises:
        UserError: `folder` is not empty, or there are fewer training rows than shards.
    """
    num_rows = dataset.splits["train"].num_rows
    if not 1 <= num_shards <= num_rows:
        raise UserError(f"{dataset.folder} has {num_rows:,} training rows, which cannot be in {num_shards:,} shards.")
    with locked(folder, "The dataset's folder", beside=True):
        refuse_to_overwrite(folder)
        remove_leftovers(folder)
        _reshard(dataset, folder, num_shards)
    if progress is not None:
        progress(f"wrote {folder}: {num_shards} shards instead of {dataset.num_shards}; soft labels are made again")


def _reshard(dataset: Dataset, folder: Path, num_shards: int) -> None:
    options = DatasetOptions.model_validate(dataset.info["options"] | {"num_shards": num_shards})
    extended = dataset.extends[0].fingerprint if dataset.extends else None
    splits: dict[str, Any] = {}
    shards: set[str] = set()
    with new_folder(folder) as new:
        for split in dataset.splits:
            files = [dataset.file(dataset.shard_file(split, shard).name) for shard in range(dataset.num_shards)]
            shards.update(file.name for file in files)
            splits[split] = write_split(new, split, SplitRows.read(files), num_shards, options.seed)
        for name in set(dataset.file_names) - shards:
            shutil.copyfile(dataset.file(name), new / name)
        changed = {
            "num_shards": num_shards,
            "splits": splits,
            "options": options.model_dump(mode="json"),
            "fingerprint": fingerprint_of(options, dataset.info["source"], extended),
            "files": parquet_checksums(new),
        }
        write_record(new / "dataset.json", dataset.info | changed)
