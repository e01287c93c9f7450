"""The Triton kernel of evaluation: all that is computed of a tile of logits, from reading it once.

Shapes: R rows, C columns of the tile, which are LANES × K chunks, T targets of a row, P parts of a row.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_chunks", "num_items", "num_rows"])
def visit_kernel(
    tile, limits, chunks, partials, counts, num_rows, num_chunks, num_items,
    LANES: tl.constexpr, NUM_TARGETS: tl.constexpr, LOG_SUMS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Write what one row has in CHUNKS of its chunks; a chunk has every K-th column, so that loads are contiguous.

    `chunks` [R, K] are their largest logits, `partials` [P, 2, R] the largest logit m and Σ exp(x − m), and `counts`
    [P, T, R] how many of the first `num_items` columns are below each of the row's `limits` [R, T]. NaN is below
    nothing, counts as +∞ among the largest, and makes the sum NaN.
    """
    row, part = tl.program_id(0), tl.program_id(1)
    chunk = part * CHUNKS + tl.arange(0, CHUNKS)
    is_chunk = chunk < num_chunks
    columns = tl.arange(0, LANES)[:, None] * num_chunks + chunk[None, :]
    start = tile + row.to(tl.int64) * (num_chunks * LANES)
    logits = tl.load(start + columns, mask=is_chunk[None, :], other=float("-inf"))
    largest = tl.max(tl.where(logits != logits, float("inf"), logits), 0)
    tl.store(chunks + row.to(tl.int64) * num_chunks + chunk, largest, mask=is_chunk)
    if LOG_SUMS:
        most = tl.max(largest, 0)
        # Where there is nothing but −∞, the difference from the largest would be NaN.
        powers = tl.exp(logits - tl.where(most == float("-inf"), 0.0, most))
        out = partials + part.to(tl.int64) * 2 * num_rows + row
        tl.store(out, most)
        tl.store(out + num_rows, tl.sum(tl.sum(powers, 0), 0))
    is_item = (columns < num_items) & is_chunk[None, :]
    for target in tl.static_range(NUM_TARGETS):
        is_below = (logits < tl.load(limits + row * NUM_TARGETS + target)) & is_item
        number = tl.sum(tl.sum(is_below.to(tl.int32), 0), 0)
        tl.store(counts + (part.to(tl.int64) * NUM_TARGETS + target) * num_rows + row, number)
