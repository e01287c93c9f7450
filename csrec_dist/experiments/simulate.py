"""A simulated log on disk: Parquet parts to prepare like any other log, and the true preferences."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from csrec_dist.errors import UserError
from csrec_dist.experiments.world import Chunk, SimulationOptions, World
from csrec_dist.files import new_folder, read_json, remove_leftovers, write_json

FORMAT_VERSION = 1
PART_CHUNKS = 256
"""Chunks in a part: about 17 million interactions."""
ORACLE_EXAMPLES = 1000
ORACLE_BLOCK = 64
SCHEMA = pa.schema([("user", pa.int32()), ("item", pa.int32()), ("timestamp", pa.int64()), ("true_item", pa.int32())])

Say = Callable[[str], None]


def simulation_options(values: Mapping[str, Any]) -> SimulationOptions:
    """The options with these values, None meaning the default; UserError that lists all mistakes."""
    try:
        return SimulationOptions.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        problems = [
            ": ".join([*map(str, each["loc"]), each["msg"].removeprefix("Value error, ")]) for each in error.errors()
        ]
        raise UserError(f"The simulation has impossible options: {'; '.join(problems)}.") from None


def simulate(options: SimulationOptions, folder: Path, progress: Say | None = None) -> dict[str, Any]:
    """Write a simulated log and its truth into `folder` and return the content of truth.json.

    `folder/log` holds the Parquet parts, with columns user, item, timestamp and true_item; `folder` the catalog
    (items.parquet, clusters.parquet) and truth.json. The folder appears whole or not at all, and its bytes
    depend on the options only. Memory holds the catalog and one chunk of users.

    Raises:
        UserError: the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; simulate into a new one.")
    remove_leftovers(folder)
    world = World.make(options)
    with new_folder(folder) as new:
        (new / "log").mkdir()
        _write_catalog(world, new)
        truth = {"format_version": FORMAT_VERSION, "options": options.model_dump(mode="json")}
        truth |= _write_log(world, new / "log", progress or (lambda line: None))
        write_json(new / "truth.json", truth)
    return truth


def load_world(folder: Path) -> World:
    """The world of a simulated folder, with the catalog from its files; UserError if it is not one."""
    truth = read_json(folder / "truth.json")
    if not isinstance(truth, dict) or truth.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{folder / 'truth.json'} is not of format {FORMAT_VERSION}; simulate again.")
    options = simulation_options(truth["options"])
    try:
        items, clusters = (pq.read_table(folder / f"{name}.parquet") for name in ("items", "clusters"))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{folder} is not whole ({error}); simulate again.") from None
    return World(options, _factors(clusters), _factors(items), items["exposure"].to_numpy())


def oracle_ranks(world: World, chunk: Chunk, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks [rows] of the true and of the observed item in the order of P(j | s), which no student can surpass.

    An item's rank is 1 + the number of more probable items.
    """
    ranks = np.empty((2, len(rows)), np.int64)
    for start in range(0, len(rows), ORACLE_BLOCK):
        some = rows[start : start + ORACLE_BLOCK]
        probabilities = world.true_probabilities(chunk.tastes[some])
        for kind, items in enumerate((chunk.true_items, chunk.items)):
            of_item = probabilities[np.arange(len(some)), items[some] - 1]
            ranks[kind, start : start + ORACLE_BLOCK] = 1 + (probabilities > of_item[:, None]).sum(1)
    return ranks[0], ranks[1]


def _write_catalog(world: World, folder: Path) -> None:
    num_items, starts = world.options.num_items, world.starts
    clusters = np.repeat(np.arange(1, len(starts), dtype=np.int32), np.diff(starts))
    items = {
        "item": pa.array(np.arange(1, num_items + 1), pa.int32()),
        "cluster": clusters,
        "exposure": world.exposure,
        "factor": _lists(world.item_factors),
    }
    pq.write_table(pa.table(items), folder / "items.parquet", compression="zstd")
    table = {
        "cluster": pa.array(np.arange(1, len(starts)), pa.int32()),
        "mass": world.masses,
        "factor": _lists(world.cluster_factors),
    }
    pq.write_table(pa.table(table), folder / "clusters.parquet", compression="zstd")


def _write_log(world: World, folder: Path, say: Say) -> dict[str, Any]:
    """Write the parts; the number of replaced interactions, and how well the true preferences predict."""
    replaced = written = 0
    oracle: dict[str, Any] = {}
    for part, chunks in enumerate(_parts(world)):
        with ExitStack() as stack:
            file = folder / f"part-{part:05d}.parquet"
            writer = stack.enter_context(pq.ParquetWriter(file, SCHEMA, compression="zstd"))
            for chunk in chunks:
                oracle = oracle or _oracle(world, chunk)
                writer.write_table(_table(chunk), row_group_size=len(chunk.users))
                replaced += int((chunk.items != chunk.true_items).sum())
                written += len(chunk.users)
        say(f"wrote {written:,} of {world.options.num_interactions:,} interactions")
    assert written == world.options.num_interactions
    return {"num_replaced": replaced, "oracle": oracle}


def _parts(world: World) -> Iterator[Iterator[Chunk]]:
    """The chunks of each part; one chunk is in memory at a time."""
    num = world.options.num_chunks
    for first in range(0, num, PART_CHUNKS):
        yield (world.chunk(chunk) for chunk in range(first, min(first + PART_CHUNKS, num)))


def _oracle(world: World, chunk: Chunk) -> dict[str, Any]:
    """Recall@10 and NDCG@10 of P(j | s) on the first users' last interactions, against true and observed items."""
    lasts = np.flatnonzero(np.diff(chunk.users, append=0))[:ORACLE_EXAMPLES]
    metrics: dict[str, Any] = {"examples": len(lasts)}
    for name, ranks in zip(("true", "observed"), oracle_ranks(world, chunk, lasts), strict=True):
        in_list = ranks <= 10
        metrics[name] = {
            "recall@10": float(in_list.mean()),
            "ndcg@10": float((in_list / np.log2(ranks + 1)).mean()),
        }
    return metrics


def _table(chunk: Chunk) -> pa.Table:
    return pa.table([chunk.users, chunk.items, chunk.timestamps, chunk.true_items], schema=SCHEMA)


def _lists(factors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(factors.ravel()), factors.shape[1])


def _factors(table: pa.Table) -> np.ndarray:
    column = table["factor"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), -1)
