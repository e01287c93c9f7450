"""Triton kernels of the losses on factored logits: sums over the catalog, and the gradient of a piece of the logits.

Shapes: N examples, V item rows (of a table, of a slice, or of a piece of either), d width of the student, K width of
the labels, S splits of the items. A program computes tiles of the logits z = h·Eᵀ + b and t = scale · (g·Fᵀ + c) on the
chip and makes of them what LOSS says, by the formulas of `divergences.py`. Every number is written by one program, in a
fixed order of tiles: there are no atomics and no locks, and two runs have the same bits.

The offset of a tile in a table is 64 bits wide: 10⁷ items of width 256 do not fit 32.
"""

import triton
import triton.language as tl

CROSS_ENTROPY = tl.constexpr(0)
REVERSE = tl.constexpr(1)
FORWARD = tl.constexpr(2)

LOWEST = tl.constexpr(-1e30)
"""A logit below all others, for items past the end and where a maximum begins: finite, so that no difference is NaN."""


@triton.jit
def _operand(x, MODE: tl.constexpr):
    """An operand of a product in the type that `MODE` multiplies in.

    Tensor cores cut fp32 to TF32 by dropping bits; rounding first halves the error and removes its bias. fp16 stands in
    for bf16 in tests: Triton's interpreter multiplies bf16 wrongly, and says nothing.
    """
    if MODE == "bf16":
        return x.to(tl.bfloat16)
    elif MODE == "fp16":
        return x.to(tl.float16)
    elif MODE == "tf32":
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def _dot(left, right, sums, MODE: tl.constexpr):
    """sums + left · right with fp32 sums."""
    if MODE == "bf16" or MODE == "fp16":
        return tl.dot(left, right, sums)
    else:
        return tl.dot(left, right, sums, input_precision=MODE)


@triton.jit
def _rows(
    table, first_row, mask, first_column,
    R: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """R rows of a table [.., WIDTH] from `first_row` on, CHUNK columns of them: an operand [R, CHUNK], 0 outside.

    The one offset of 64 bits is that of the first row: the others would take two registers for each number.
    """
    columns = first_column + tl.arange(0, CHUNK)
    addresses = table + first_row.to(tl.int64) * WIDTH + (tl.arange(0, R)[:, None] * WIDTH + columns[None, :])
    if WIDTH % CHUNK == 0:
        return _operand(tl.load(addresses, mask=mask[:, None], other=0.0), MODE)
    else:
        return _operand(tl.load(addresses, mask=mask[:, None] & (columns < WIDTH)[None, :], other=0.0), MODE)


@triton.jit
def _product(
    held, left, first_left, left_mask, right, first_right, right_mask,
    R: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """The products [R, C] of R rows of one table with C rows of another, both of this width.

    `held` is what `_rows` gives of the left table's first CHUNK columns. Where these are all, it stays on the chip
    while the right table goes by. Of rows of two chunks the compiler moves the loads out of the loop around, unless
    that writes to memory. Wider ones would not fit on the chip: a loop over the chunks keeps their loads inside.
    """
    sums = tl.zeros((R, C), tl.float32)
    if CHUNK >= WIDTH:
        sums = _dot(held, tl.trans(_rows(right, first_right, right_mask, 0, C, WIDTH, CHUNK, MODE)), sums, MODE)
    elif WIDTH <= 2 * CHUNK:
        for first in tl.static_range(0, WIDTH, CHUNK):
            a = _rows(left, first_left, left_mask, first, R, WIDTH, CHUNK, MODE)
            b = _rows(right, first_right, right_mask, first, C, WIDTH, CHUNK, MODE)
            sums = _dot(a, tl.trans(b), sums, MODE)
    else:
        for first in range(0, WIDTH, CHUNK):
            a = _rows(left, first_left, left_mask, first, R, WIDTH, CHUNK, MODE)
            b = _rows(right, first_right, right_mask, first, C, WIDTH, CHUNK, MODE)
            sums = _dot(a, tl.trans(b), sums, MODE)
    return sums


@triton.jit
def _logits(
    held, states, first_row, row_mask, table, bias, first_item, items, item_mask,
    BN: tl.constexpr, BV: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, MODE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """A tile [BN, BV] of states · tableᵀ + bias in fp32, of `items` from `first_item` on."""
    logits = _product(held, states, first_row, row_mask, table, first_item, item_mask, BN, BV, WIDTH, CHUNK, MODE)
    if HAS_BIAS:
        logits += tl.load(bias + items, mask=item_mask, other=0.0).to(tl.float32)[None, :]
    return logits


@triton.jit(do_not_specialize=["num_examples", "num_items", "items_of_split", "label_scale"])
def statistics_kernel(
    states, weight, bias, label_states, label_weight, label_bias, partials,
    num_examples, num_items, items_of_split, label_scale,
    D: tl.constexpr, K: tl.constexpr, LOSS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LABEL_BIAS: tl.constexpr,
    BN: tl.constexpr, BV: tl.constexpr, D_CHUNK: tl.constexpr, K_CHUNK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Write the sums of one split of the items, for BN examples: `partials` [S, 2, N] or, with labels, [S, 5, N].

    They are max z, max t, Σ exp z', Σ exp t' and Σ (z' − t') exp z' (reverse) or exp t' (forward), where z' and t' are
    what exceeds the maxima; without labels max z and Σ exp z'.
    """
    split, first_row = tl.program_id(1), tl.program_id(0) * BN
    rows = first_row + tl.arange(0, BN)
    row_mask = rows < num_examples
    h = _rows(states, first_row, row_mask, 0, BN, D, D_CHUNK, MODE)
    g = _rows(label_states, first_row, row_mask, 0, BN, K, K_CHUNK, MODE)
    max_z = tl.full((BN,), LOWEST, tl.float32)
    max_t = tl.full((BN,), LOWEST, tl.float32)
    sum_z = tl.zeros((BN,), tl.float32)
    sum_t = tl.zeros((BN,), tl.float32)
    difference = tl.zeros((BN,), tl.float32)
    start = split * items_of_split
    stop = tl.minimum(start + items_of_split, num_items)
    for first in range(0, items_of_split, BV):
        first_item = start + first
        items = first_item + tl.arange(0, BV)
        mask = items < stop
        z = _logits(
            h, states, first_row, row_mask, weight, bias, first_item, items, mask, BN, BV, D, D_CHUNK, MODE, HAS_BIAS
        )  # fmt: skip
        z = tl.where(mask[None, :], z, LOWEST)
        new_z = tl.maximum(max_z, tl.max(z, 1))
        z -= new_z[:, None]
        p = tl.exp(z)
        # The sums are those above the maximum so far; where it rises, they are brought down to the new one.
        rise_z = max_z - new_z
        if LOSS != CROSS_ENTROPY:
            t = _logits(
                g, label_states, first_row, row_mask, label_weight, label_bias, first_item, items, mask,
                BN, BV, K, K_CHUNK, MODE, HAS_LABEL_BIAS,
            )  # fmt: skip
            t = tl.where(mask[None, :], t * label_scale, LOWEST)
            new_t = tl.maximum(max_t, tl.max(t, 1))
            t -= new_t[:, None]
            q = tl.exp(t)
            rise_t = max_t - new_t
            if LOSS == REVERSE:
                difference = (difference + sum_z * (rise_z - rise_t)) * tl.exp(rise_z)
                difference += tl.sum((z - t) * p, 1)
            else:
                difference = (difference + sum_t * (rise_z - rise_t)) * tl.exp(rise_t)
                difference += tl.sum((z - t) * q, 1)
            sum_t = sum_t * tl.exp(rise_t) + tl.sum(q, 1)
            max_t = new_t
        sum_z = sum_z * tl.exp(rise_z) + tl.sum(p, 1)
        max_z = new_z
    if LOSS == CROSS_ENTROPY:
        out = partials + split.to(tl.int64) * 2 * num_examples + rows
        tl.store(out, max_z, mask=row_mask)
        tl.store(out + num_examples, sum_z, mask=row_mask)
    else:
        out = partials + split.to(tl.int64) * 5 * num_examples + rows
        tl.store(out, max_z, mask=row_mask)
        tl.store(out + num_examples, max_t, mask=row_mask)
        tl.store(out + 2 * num_examples, sum_z, mask=row_mask)
        tl.store(out + 3 * num_examples, sum_t, mask=row_mask)
        tl.store(out + 4 * num_examples, difference, mask=row_mask)


@triton.jit(do_not_specialize=["num_examples", "num_splits"])
def merge_kernel(partials, merged, num_examples, num_splits, LOSS: tl.constexpr, BN: tl.constexpr):
    """Write the sums of all splits, in their order: `merged` [2, N] or, with labels, [5, N], from `partials` of each.

    Without splits the maxima are LOWEST and the sums 0.
    """
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    mask = rows < num_examples
    NUM_SUMS: tl.constexpr = 2 if LOSS == CROSS_ENTROPY else 5
    max_z = tl.full((BN,), LOWEST, tl.float32)
    max_t = tl.full((BN,), LOWEST, tl.float32)
    for split in range(num_splits):
        part = partials + split * NUM_SUMS * num_examples + rows
        max_z = tl.maximum(max_z, tl.load(part, mask=mask, other=0.0))
        if LOSS != CROSS_ENTROPY:
            max_t = tl.maximum(max_t, tl.load(part + num_examples, mask=mask, other=0.0))
    sum_z = tl.zeros((BN,), tl.float32)
    sum_t = tl.zeros((BN,), tl.float32)
    difference = tl.zeros((BN,), tl.float32)
    for split in range(num_splits):
        part = partials + split * NUM_SUMS * num_examples + rows
        rise_z = tl.load(part, mask=mask, other=0.0) - max_z
        if LOSS == CROSS_ENTROPY:
            sum_z += tl.load(part + num_examples, mask=mask, other=0.0) * tl.exp(rise_z)
        else:
            rise_t = tl.load(part + num_examples, mask=mask, other=0.0) - max_t
            of_z = tl.load(part + 2 * num_examples, mask=mask, other=0.0)
            of_t = tl.load(part + 3 * num_examples, mask=mask, other=0.0)
            of_both = tl.load(part + 4 * num_examples, mask=mask, other=0.0)
            if LOSS == REVERSE:
                difference += (of_both + of_z * (rise_z - rise_t)) * tl.exp(rise_z)
            else:
                difference += (of_both + of_t * (rise_z - rise_t)) * tl.exp(rise_t)
            sum_z += of_z * tl.exp(rise_z)
            sum_t += of_t * tl.exp(rise_t)
    tl.store(merged + rows, max_z, mask=mask)
    if LOSS == CROSS_ENTROPY:
        tl.store(merged + num_examples + rows, sum_z, mask=mask)
    else:
        tl.store(merged + num_examples + rows, max_t, mask=mask)
        tl.store(merged + 2 * num_examples + rows, sum_z, mask=mask)
        tl.store(merged + 3 * num_examples + rows, sum_t, mask=mask)
        tl.store(merged + 4 * num_examples + rows, difference, mask=mask)


@triton.jit(do_not_specialize=["num_examples", "num_items", "items_of_split", "label_scale", "first_row", "first_item"])
def coefficients_kernel(
    states, weight, bias, label_states, label_weight, label_bias,
    shift_z, shift_t, scales, ratios, target_scales, targets, coefficients,
    num_examples, num_items, items_of_split, label_scale, first_row, first_item,
    D: tl.constexpr, K: tl.constexpr, LOSS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LABEL_BIAS: tl.constexpr,
    BN: tl.constexpr, BV: tl.constexpr, D_CHUNK: tl.constexpr, K_CHUNK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Write a piece of the loss's gradient with respect to the logits: scale · (part₀ + ratio · part₁).

    `coefficients` [num_examples, num_items] are those of the examples from `first_row` on and of the items from
    `first_item` on. At the targets [N], which are item rows, target_scale is added; −1 is a target of another slice.
    """
    first_example = tl.program_id(0) * BN
    row_mask = first_example + tl.arange(0, BN) < num_examples
    out_row, first_row = first_example, first_row + first_example
    rows = first_row + tl.arange(0, BN)
    h = _rows(states, first_row, row_mask, 0, BN, D, D_CHUNK, MODE)
    g = _rows(label_states, first_row, row_mask, 0, BN, K, K_CHUNK, MODE)
    shifts_z = tl.load(shift_z + rows, mask=row_mask, other=0.0)[:, None]
    shifts_t = tl.load(shift_t + rows, mask=row_mask, other=0.0)[:, None]
    scale = tl.load(scales + rows, mask=row_mask, other=0.0)[:, None]
    ratio = tl.load(ratios + rows, mask=row_mask, other=0.0)[:, None]
    target = tl.load(targets + rows, mask=row_mask, other=-1)[:, None]
    target_scale = tl.load(target_scales + rows, mask=row_mask, other=0.0)[:, None]
    start = tl.program_id(1) * items_of_split
    stop = tl.minimum(start + items_of_split, num_items)
    for first in range(0, items_of_split, BV):
        mask = start + first + tl.arange(0, BV) < stop
        first_of_tile = first_item + start + first
        items = first_of_tile + tl.arange(0, BV)
        z = _logits(
            h, states, first_row, row_mask, weight, bias, first_of_tile, items, mask, BN, BV, D, D_CHUNK, MODE, HAS_BIAS
        )  # fmt: skip
        z -= shifts_z
        if LOSS == CROSS_ENTROPY:
            x = tl.exp(z)
        else:
            t = _logits(
                g, label_states, first_row, row_mask, label_weight, label_bias, first_of_tile, items, mask,
                BN, BV, K, K_CHUNK, MODE, HAS_LABEL_BIAS,
            )  # fmt: skip
            t = t * label_scale - shifts_t
            x = tl.exp(z) * (z - t + ratio) if LOSS == REVERSE else tl.exp(z) + ratio * tl.exp(t)
        x = x * scale + tl.where(items[None, :] == target, target_scale, 0.0)
        out = coefficients + out_row.to(tl.int64) * num_items + (start + first)
        out += tl.arange(0, BN)[:, None] * num_items + tl.arange(0, BV)[None, :]
        tl.store(out, x.to(coefficients.dtype.element_ty), mask=row_mask[:, None] & mask[None, :])
