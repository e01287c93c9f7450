"""The arithmetic of memory is that of docs/clusters.md, and adds up for a model whose tensors are counted by hand."""

from fractions import Fraction
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from csrec_dist.distributed.copies import WIDE_LAYER, ModelBytes, copies, wide_layers

PAGE = (Path(__file__).resolve().parents[2] / "docs/clusters.md").read_text()
NAMES = {"ZeRO 1 or 2": ("zero1", "zero2"), "ZeRO 3": ("zero3",), "`ddp`": ("ddp",), "`fsdp`": ("fsdp",)}
NUM_MEMBERS = 2


def table_rows(first_cell: str) -> list[list[str]]:
    """The cells of the page's table whose header begins with `first_cell`, without its header."""
    lines = PAGE[PAGE.index(f"| {first_cell} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def value(sum_of_terms: str, num_ranks: int, slices: int) -> float:
    """What a cell such as `1 + 3/W` says."""
    places = {"W": num_ranks, "k": slices}
    terms = [term.partition("/") for term in sum_of_terms.replace("M", str(NUM_MEMBERS)).split(" + ")]
    return float(sum(Fraction(int(above), places[below] if below else 1) for above, _, below in terms))


def test_the_table_of_engines_is_what_the_plan_reckons_with() -> None:
    told = set()
    for what, between, within, labels, host in table_rows("engine"):
        engines = [name for text, names in NAMES.items() if text in what for name in names]
        num_ranks, slices = (1 if "one rank" in what else 4), (2 if "k > 1" in what else 1)
        for engine in engines:
            wanted = [value(cell, num_ranks, slices) for cell in (between, within, host)]
            assert list(copies(engine, num_ranks, slices)) == wanted, (engine, what)
            told.add((engine, num_ranks, slices))
        assert value(labels, num_ranks, slices) == NUM_MEMBERS / slices
    assert told == {
        ("ddp", 1, 1), ("ddp", 4, 1), ("ddp", 4, 2), ("fsdp", 4, 1), ("fsdp", 4, 2),
        ("zero1", 4, 1), ("zero2", 4, 1), ("zero3", 4, 1),
    }  # fmt: skip


def test_the_table_of_slices_follows_from_it() -> None:
    rows = table_rows("items")
    assert len(rows) == 6
    for items, width, size, *numbers in rows:
        table = int(items.replace(",", "")) * int(width) * 4 / 1e9
        assert size == f"{table:.{2 if table < 1 else 1}f} GB"
        for gigabytes, number in zip((24, 40, 80), numbers, strict=True):
            for k in (2**power for power in count()):
                between, within, _ = copies("ddp", 64, k)
                if table * (between + within + NUM_MEMBERS / k) <= 0.75 * gigabytes:
                    break
            assert int(number) == k


@pytest.mark.parametrize(
    ("engine", "num_ranks", "slices", "device", "host"),
    [
        ("ddp", 1, 1, 5 * 1600, 4 * 1600),
        ("ddp", 4, 1, 6 * 1600, 1600),
        ("ddp", 4, 2, 5 * 500 + 6 * 600, 1600),
        # All but the layers is gathered whole, and two layers are at a time.
        ("fsdp", 4, 1, 1200 + 3 * (1000 + 200 + 200), 1600),
        ("fsdp", 4, 4, 5 * 250 + 450 + 3 * (200 + 200), 1600),
        ("zero3", 4, 1, 1600 + 4 * 1600, 1600),
    ],
)
def test_a_model_adds_up(engine: str, num_ranks: int, slices: int, device: int, host: int) -> None:
    model = ModelBytes(table=1000, layers=400, largest_layer=100, rest=200)
    assert model.of_rank(engine, num_ranks, slices) == (device, host)


def test_wide_layers_are_those_of_stacks() -> None:
    with torch.device("meta"):
        wide, narrow = nn.Linear(WIDE_LAYER, 1, bias=False), nn.Linear(WIDE_LAYER - 1, 1, bias=False)
        module = nn.ModuleDict({"stack": nn.ModuleList([wide, narrow]), "alone": nn.Linear(WIDE_LAYER, 2)})
    assert wide_layers(module) == [wide]
