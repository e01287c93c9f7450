"""How the kernels of the losses cut the logits into tiles: fixed by precision and widths, so bits are the same.

Choosing by timing would give ranks different tiles, and so different sums.
"""

from dataclasses import dataclass

from csrec_dist.options import MatmulPrecision


@dataclass(frozen=True)
class Blocks:
    """A tile of `examples` × `items`, the columns that are multiplied at a time, and Triton's own options.

    `mode` is that of the products: ieee, tf32x3, tf32 or bf16.
    """

    mode: str
    examples: int
    items: int
    chunk: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Configuration:
    """The blocks of the kernel that sums over the catalog, and of the one that writes the logits' gradients."""

    statistics: Blocks
    coefficients: Blocks


_NARROW: dict[MatmulPrecision, Configuration] = {
    "highest": Configuration(Blocks("tf32x3", 128, 64, 64, 8, 1), Blocks("tf32x3", 64, 32, 64, 4, 2)),
    "high": Configuration(Blocks("tf32", 128, 64, 64, 4, 1), Blocks("tf32", 64, 64, 128, 4, 1)),
    "medium": Configuration(Blocks("bf16", 128, 64, 128, 4, 2), Blocks("bf16", 64, 64, 128, 4, 1)),
}
"""The fastest on an H200 for d = 64 and K = 128 (`benchmarks/kernels.py`). Three TF32 products were faster there than
fp32 without tensor cores, by five times, and than six products in bf16."""
_WIDE: dict[MatmulPrecision, Configuration] = {
    "highest": _NARROW["highest"],
    "high": Configuration(*[Blocks("tf32", 128, 64, 64, 8, 1)] * 2),
    "medium": Configuration(*[Blocks("bf16", 128, 64, 64, 8, 1)] * 2),
}
"""For wider tables: tiles that spill no registers; they were not timed against others."""


def configuration(precision: MatmulPrecision, width: int, label_width: int) -> Configuration | None:
    """The blocks for a student of width d and labels of width K (0 without), or None where there are none."""
    if width > 256 or label_width > 1024:
        return None
    return (_NARROW if max(width, label_width) <= 128 else _WIDE)[precision]


def chunk(width: int, blocks: Blocks) -> int:
    """How many columns of a table of this width are multiplied at a time: a power of two of at least 16."""
    return min(blocks.chunk, max(16, 1 << (width - 1).bit_length()))
