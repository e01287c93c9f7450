"""Arrow arrays of numpy's: pyarrow's own conversion imports pandas where it is installed, half a second or more."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def arrow(numbers: np.ndarray, dtype: npt.DTypeLike | None = None) -> pa.Array:
    """The numbers or truth values [n] as an Arrow array without nulls, in their own type or in `dtype`.

    It may be in the same memory, so the numbers are not to be written to as long as it lives.
    """
    numbers = np.ascontiguousarray(numbers, dtype)
    content = np.packbits(numbers, bitorder="little") if numbers.dtype == np.bool_ else numbers
    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(content)])
