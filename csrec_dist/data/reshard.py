"""The rows of a prepared dataset in another number of shards, for more ranks than it was made for."""

import shutil
from collections.abc import Callable
from pathlib import Path

from csrec_dist.data.dataset import SEQUENCES, Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import fingerprint_of, refuse_to_overwrite
from csrec_dist.data.shards import SplitRows, write_split
from csrec_dist.errors import UserError
from csrec_dist.files import new_folder, remove_leftovers, write_json

WHOLE_FILES = ("items.parquet", "users.parquet", SEQUENCES)


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
    refuse_to_overwrite(folder)
    remove_leftovers(folder)
    options = DatasetOptions.model_validate(dataset.info["options"] | {"num_shards": num_shards})
    splits = {}
    with new_folder(folder) as new:
        for split in dataset.splits:
            files = [dataset.shard_file(split, shard) for shard in range(dataset.num_shards)]
            splits[split] = write_split(new, split, SplitRows.read(files), num_shards, options.seed)
        for name in WHOLE_FILES:
            shutil.copyfile(dataset.folder / name, new / name)
        changed = {
            "num_shards": num_shards,
            "splits": splits,
            "options": options.model_dump(mode="json"),
            "fingerprint": fingerprint_of(options, dataset.info["source"]),
        }
        write_json(new / "dataset.json", dataset.info | changed)
    if progress is not None:
        progress(f"wrote {folder}: {num_shards} shards instead of {dataset.num_shards}; soft labels are made again")
