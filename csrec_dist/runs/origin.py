"""The finished model that a training starts from, whichever folder names it, and which items its rows are. No torch."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from csrec_dist.config import is_resolved
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.ids import RawIds
from csrec_dist.errors import UserError
from csrec_dist.files import read_json, sha256_file
from csrec_dist.runs.run import Run

ITEMS_FILE = "items.parquet"


@dataclass(frozen=True)
class Origin:
    """A model's folder, and the file with its raw item ids where there is one."""

    folder: Path
    items_file: Path | None

    @classmethod
    def of(cls, folder: Path | str) -> Self:
        """That of a run's folder, which is the student; of a model's in a run; or of one that was saved with its items.

        Raises:
            UserError: there is no finished model.
        """
        folder = Path(folder)
        if is_resolved(folder / "config.yaml"):
            run = Run.open(folder)
            run.require("distill")
            return cls(folder / "student", run.dataset_folder / ITEMS_FILE)
        if not (folder / "config.json").exists():
            raise UserError(
                f"training.init_from: {folder} is neither the folder of a finished run nor that of a model: it has no "
                "config.yaml of a run and no config.json."
            )
        if (folder / ITEMS_FILE).exists():
            return cls(folder, folder / ITEMS_FILE)
        around = [parent for parent in folder.resolve().parents[:2] if is_resolved(parent / "config.yaml")]
        return cls(folder, Run.open(around[0]).dataset_folder / ITEMS_FILE if around else None)

    @cached_property
    def id_map(self) -> str | None:
        """The fingerprint of the item ids that the model was trained with, as it says itself, or by the file."""
        path = self.folder / "metrics.json"
        said = read_json(path).get("id_map") if path.exists() else None
        if said is None and self.items_file is not None and self.items_file.exists():
            return sha256_file(self.items_file)[:16]
        return said

    def rows_of(self, dataset: Dataset, num_stored: int) -> np.ndarray:
        """For each item of the dataset the row of the model's table, or −1: [V] int64.

        Items are the same by their raw ids. Where these are not at hand, those of a dataset are taken that this one is
        or extends.

        Args:
            num_stored: the number of items that the model knows.

        Raises:
            UserError: nobody knows which items the rows are, or none of them is in the dataset.
        """
        file = self.items_file
        if file is not None and file.exists() and sha256_file(file)[:16] == self.id_map:
            rows = _by_raw_id(RawIds(file), RawIds(dataset.file(ITEMS_FILE)))
            num_known = len(RawIds(file))
        else:
            known = dataset.num_known(self.id_map)
            if known is None:
                raise UserError(
                    f"training.init_from: nothing says which item each row of {self.folder} is: give the folder of its "
                    "run, with the dataset where it was, or one that Recommender.save_pretrained wrote."
                )
            rows = np.concatenate([np.arange(known), np.full(dataset.num_items - known, -1)])
            num_known = known
        if num_known != num_stored:
            raise UserError(
                f"training.init_from: {self.folder} knows {num_stored:,} items, but the ids it was trained with are "
                f"{num_known:,}: they do not belong together."
            )
        if (rows < 0).all():
            raise UserError(
                f"training.init_from: {self.folder} knows none of the items of {dataset.folder}; start from a model "
                "that was trained on the same kind of ids, or leave it out."
            )
        return rows


def _by_raw_id(stored: RawIds, wanted: RawIds) -> np.ndarray:
    """The place of each wanted id among the stored ones, −1 where it is none of them."""
    raw = [pl.Series("raw", ids.values).cast(pl.String) for ids in (stored, wanted)]
    places = raw[0].to_frame().with_row_index("row")
    joined = raw[1].to_frame().join(places, on="raw", how="left", maintain_order="left")
    return joined["row"].cast(pl.Int64).fill_null(-1).to_numpy(writable=True)
