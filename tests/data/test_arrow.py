"""Arrow arrays made without pandas are those that pyarrow itself makes."""

import numpy as np
import pyarrow as pa
import pytest

from csrec_dist.data.arrow import arrow


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_an_array_is_that_of_pyarrow(dtype: str, size: int) -> None:
    numbers = np.random.default_rng(size).integers(0, 2 if dtype == "bool" else 100, size).astype(dtype)
    found = arrow(numbers)
    found.validate(full=True)
    assert found.equals(pa.array(numbers))


def test_strided_numbers_are_converted_to_the_type_that_is_asked_for() -> None:
    found = arrow(np.arange(10)[::-3], np.int32)
    assert (found.type, found.to_pylist()) == (pa.int32(), [9, 6, 3, 0])


def test_truth_values_after_the_last_byte_are_kept() -> None:
    assert arrow(np.array([True] * 9)).to_pylist() == [True] * 9
