"""Losses on slices of the catalog against the same losses on whole tables: values and every gradient."""

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from csrec_dist.distributed.catalog import CatalogSlice, PlainTable, average_slices
from csrec_dist.losses import (
    DenseLabels,
    FactoredLabels,
    MixtureLabels,
    NoiseMatrix,
    cross_entropy_parts,
    distillation_parts,
    robust,
    tiles,
)
from tests.helpers.catalog_ranks import LAYOUTS, mesh
from tests.helpers.ranks import run_ranks

NUM_EXAMPLES = {1: [9], 2: [4, 7], 3: [6, 0, 3], 4: [5, 0, 7, 3]}
"""Of each rank, by the number of ranks."""
FORMS = ("factored", "dense", "mixture", "mixture_dense")
CASES = {
    "cross_entropy": {},
    **{f"{kl}_{form}": {"kl": kl, "form": form} for kl, form in itertools.product(("reverse", "forward"), FORMS)},
    "robust": {"form": "factored", "maximum": None},
    "robust_mixture": {"form": "mixture", "maximum": "norm"},
    "robust_norm": {"form": "factored", "maximum": "norm"},
    "robust_exact": {"form": "factored", "maximum": "exact"},
}
SETTINGS = {
    "single": {"num_items": 23, "size": 1.0, "dtype": torch.float32, "kept": 1 << 26},
    "shifted": {"num_items": 31, "size": 60.0, "dtype": torch.float64, "kept": 620},
    "few_items": {"num_items": 2, "size": 60.0, "dtype": torch.float64, "kept": 1 << 26},
    "one_slice": {"num_items": 11, "size": 1.0, "dtype": torch.float64, "kept": 1 << 26, "last": 90.0},
}
"""`size` is that of states and dense logits: above 40 they are shifted. `last` makes only the last slice need it.

`kept` bytes of tiles are kept: in "shifted" those of cross-entropy on the smaller of two slices, not on the larger."""
NOISES = {f"{maximum}_{num_items}": (num_items, maximum) for num_items in (25, 2) for maximum in ("exact", "norm")}
SLICES = ("weight", "bias", "observed", "preferred")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


def make(num_examples: int, setting: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A whole problem: all examples, whole tables."""
    num_items, size = setting["num_items"], setting["size"]
    g = torch.Generator().manual_seed(num_items)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    given: dict[str, Any] = {"states": normal(num_examples, 5) * size, "weight": normal(num_items, 5)}
    given["weight"][-1] *= setting.get("last", 1.0)
    given |= {"bias": normal(num_items), "targets": torch.randint(1, num_items + 1, (num_examples,), generator=g)}
    given["weights"] = torch.rand(num_examples, generator=g, dtype=torch.float64).to(dtype)
    given["weights"][::4] = 0
    parts = [(normal(num_examples, width) * size, normal(num_items, width), normal(num_items)) for width in (6, 3)]
    given["parts"] = parts
    given["logits"] = [normal(num_examples, num_items) * size for _ in range(2)]
    return given


def labels_of(given: dict[str, Any], form: str, rows: slice, items: slice) -> Any:
    """The labels of some examples, factored tables being those of some items; dense rows are whole."""
    parts = [FactoredLabels(states[rows], weight[items], bias[items]) for states, weight, bias in given["parts"]]
    dense = [DenseLabels(logits[rows]) for logits in given["logits"]]
    shares = (0.3, 0.7)
    return {
        "factored": parts[0],
        "dense": dense[0],
        "mixture": MixtureLabels(tuple(parts), shares),
        "mixture_dense": MixtureLabels(tuple(dense), shares),
    }[form]


def solve(
    given: dict[str, Any], case: dict[str, Any], rows: slice, catalog: CatalogSlice, factor: float
) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """The sums and gradients of factor · loss of some examples, and the parameters that are slices."""
    items = catalog.rows
    leaves = {"states": given["states"][rows], "weight": given["weight"][items], "bias": given["bias"][items]}
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    table = PlainTable(leaves["weight"], leaves["bias"], catalog)
    args = leaves["states"], table, given["targets"][rows]
    common = {"weights": given["weights"][rows]}
    slices = [leaves["weight"], leaves["bias"]]
    if not case:
        sums = list(cross_entropy_parts(*args, **common)[:2])
    elif "kl" in case:
        labels = labels_of(given, case["form"], rows, items)
        sums = list(distillation_parts(*args, labels, temperature=2.0, beta=0.4, kl=case["kl"], **common))
    else:
        noise, labels = None, labels_of(given, case["form"], rows, items)
        if case["maximum"]:
            matrix = NoiseMatrix(catalog, 3, seed=5, maximum=case["maximum"])
            matrix.to(given["states"].dtype)
            noise = matrix()
            leaves |= {"observed": matrix.observed, "preferred": matrix.preferred}
            slices += [matrix.observed, matrix.preferred]
        sums = list(robust(*args, labels, alpha=0.3, noise=noise, **common))
    (sums[0] * factor).backward()
    found = {name: leaf.grad for name, leaf in leaves.items()}
    return {"sums": torch.stack([part.detach() for part in sums]), **found}, slices


def arrays(found: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


def on_rank(rank: int, world_size: int, catalog_parallel: int) -> dict[str, Any]:
    """All cases in all settings by this rank's share: its examples, its slice."""
    data, group = mesh(rank, world_size, catalog_parallel)
    counts = NUM_EXAMPLES[world_size]
    rows = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    found = {}
    for name, setting in SETTINGS.items():
        set_tiles(setting["kept"])
        given = make(sum(counts), setting, setting["dtype"])
        catalog = CatalogSlice.of(setting["num_items"], group)
        for key, case in CASES.items():
            result, slices = solve(given, case, rows, catalog, world_size / float(given["weights"].sum()))
            average_slices(slices, data, world_size)
            result["states"] /= world_size
            result |= {part: leaf.grad for part, leaf in zip(SLICES, slices, strict=False)}
            found[name, key] = arrays(result)
    for name, (num_items, maximum) in NOISES.items():
        catalog = CatalogSlice.of(num_items, group)
        noise = NoiseMatrix(catalog, 3, seed=5, maximum=maximum, refresh=2)
        found[name] = noise_steps(noise, catalog.rows)
    return found


def set_tiles(kept: int) -> None:
    """Several row blocks, several tiles."""
    tiles.KEPT_ROWS["cpu"], tiles.RECOMPUTED_ROWS["cpu"] = 5, 4
    tiles.TILE_BYTES["cpu"] = 4 * 8 * 5
    tiles.KEPT_BYTES["cpu"] = kept


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (tiles.KEPT_ROWS, tiles.RECOMPUTED_ROWS, tiles.TILE_BYTES, tiles.KEPT_BYTES):
        monkeypatch.setitem(table, "cpu", table["cpu"])


def noise_steps(noise: NoiseMatrix, rows: slice) -> list[dict[str, np.ndarray]]:
    """Parameters and column maxima over five steps in which the parameters move, every other one with a search."""
    found = []
    for _ in range(5):
        found.append(arrays(noise()._asdict()))
        with torch.no_grad():
            for parameter in (noise.observed, noise.preferred):
                draws = torch.randn(100, 3, generator=torch.Generator().manual_seed(len(found)))
                parameter += draws[rows][: len(parameter)]
    return found


@cache
def results(world_size: int, catalog_parallel: int) -> list[dict[str, Any]]:
    if world_size == 1:
        return [on_rank(0, 1, 1)]
    return run_ranks(on_rank, world_size, catalog_parallel)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("key", CASES)
@pytest.mark.parametrize(("world_size", "catalog_parallel"), LAYOUTS)
def test_slices_give_the_values_and_gradients_of_whole_tables(
    world_size: int, catalog_parallel: int, key: str, setting: str
) -> None:
    chosen = SETTINGS[setting]
    given, catalog = make(sum(NUM_EXAMPLES[world_size]), chosen, torch.float64), CatalogSlice.whole(chosen["num_items"])
    expected, _ = solve(given, CASES[key], slice(None), catalog, 1 / float(given["weights"].sum()))
    ranks = [found[setting, key] for found in results(world_size, catalog_parallel)]
    assert ranks[0].keys() == expected.keys()
    near(sum(rank["sums"] for rank in ranks), expected.pop("sums"), chosen["dtype"], "sums")
    near(np.concatenate([rank["states"] for rank in ranks]), expected.pop("states"), chosen["dtype"], "states")
    for first in range(0, world_size, catalog_parallel):
        group = ranks[first : first + catalog_parallel]
        for name, whole in expected.items():
            near(np.concatenate([rank[name] for rank in group]), whole, chosen["dtype"], name)


def near(got: np.ndarray, expected: torch.Tensor, dtype: torch.dtype, name: str) -> None:
    wanted = expected.detach().numpy()
    assert got.shape == wanted.shape, name
    error = np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-3)
    assert error <= TOLERANCE[dtype], (name, float(error))


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize(("world_size", "catalog_parallel"), LAYOUTS)
def test_the_noise_matrix_is_the_whole_one_in_slices(world_size: int, catalog_parallel: int, name: str) -> None:
    num_items, maximum = NOISES[name]
    whole = noise_steps(
        NoiseMatrix(CatalogSlice.whole(num_items), 3, seed=5, maximum=maximum, refresh=2), slice(0, num_items)
    )
    group = [found[name] for found in results(world_size, catalog_parallel)[:catalog_parallel]]
    for step, expected in enumerate(whole):
        for part, value in expected.items():
            got = np.concatenate([found[step][part] for found in group])
            np.testing.assert_allclose(got, value, rtol=1e-6 if part == "maxima" else 0, err_msg=part)
