"""Raw ids of users or items and their numbers 1, 2, … in a prepared dataset."""

import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csrec_dist.data.arrow import arrow
from csrec_dist.errors import UserError, quoted


class RawIds:
    """The raw ids of an items.parquet or users.parquet, read when first asked for.

    A raw id is an integer or a text, and is recognised in either form: 7, 7.0 and "7" name the same item. Values of
    other types are the texts that `prepare` made of them. `id in ids` says whether it is there, `list(ids)` has all.
    """

    def __init__(self, path: Path) -> None:
        """`path` is the file; UserError when there is none."""
        self.path = path
        if not path.is_file():
            raise UserError(f"{path} is missing: it says which raw id each number stands for.")

    @cached_property
    def values(self) -> pa.Array:
        """The raw ids of 1, 2, …, at indices 0, 1, …"""
        # Not read_table, which imports pandas where it is installed, to know its kinds of arrays.
        with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            return file.read(columns=["raw"])["raw"].combine_chunks()

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[int | str]:
        return iter(self.values.to_pylist())

    def __contains__(self, raw: object) -> bool:
        return self.number(raw) is not None

    def __repr__(self) -> str:
        return f"RawIds({self.path}: {len(self):,}, such as {quoted(self.values[0].as_py())})"

    def of(self, numbers: Iterable[int] | np.ndarray) -> pa.Array:
        """The raw ids of some numbers."""
        return self.values.take(arrow(np.asarray(numbers, np.int64) - 1))

    def number(self, raw: Any) -> int | None:
        """The number of a raw id; None for one that is not there, and for a missing value."""
        text = _text(raw)
        return None if text is None else self._numbers.get(text)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {str(raw): number for number, raw in enumerate(self.values.to_pylist(), 1)}


def _text(raw: Any) -> str | None:
    """A raw id as text, as `prepare` writes it; None for None and NaN. Arrays and tensors of one value are that value.

    pandas turns integers into floats where one is missing.
    """
    raw = raw.item() if hasattr(raw, "item") else raw
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, float):
        return None if math.isnan(raw) else str(int(raw)) if raw.is_integer() else str(raw)
    if isinstance(raw, bytes):
        return raw.decode(errors="replace")
    return None if raw is None else str(raw)
