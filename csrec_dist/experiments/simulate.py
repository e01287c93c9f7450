"""A simulated log on disk: Parquet parts to prepare like any other log, and the true preferences."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from csrec_dist.data.arrow import arrow
from csrec_dist.errors import UserError, quoted
from csrec_dist.experiments.world import Chunk, SimulationOptions, World
from csrec_dist.files import new_folder, read_json, write_json
from csrec_dist.writers import remove_leftovers

FORMAT_VERSION = 1
PART_CHUNKS = 256
"""Chunks in a part: about 17 million interactions."""
ORACLE_EXAMPLES = 1000
ORACLE_BLOCK = 64
SCHEMA = pa.schema([("user", pa.int32()), ("item", pa.int32()), ("timestamp", pa.int64()), ("true_item", pa.int32())])

Say = Callable[[str], None]


def simulation_options(values: Mapping[str, Any]) -> SimulationOptions:
    """The options with these values; None means the default. Raises UserError, which lists all mistakes."""
    try:
        return SimulationOptions.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        problems = [
            f"{': '.join([*map(str, each['loc']), each['msg'].removeprefix('Value error, ')])} "
            f"(received {quoted(each['input'])})"
            for each in error.errors()
        ]
        raise UserError(f"The simulation has impossible options: {'; '.join(problems)}.") from None


def simulate(options: SimulationOptions, folder: Path, progress: Say | None = None) -> dict[str, Any]:
    """Write a simulated log and its truth into `folder` and return the content of truth.json.

    `folder/log` has the Parquet parts, with columns user, item, timestamp and true_item; `folder` has the catalog
    (items.parquet, clusters.parquet) and truth.json. The folder appears whole or not at all, and its bytes depend only
    on the options. The catalog and one chunk of users are in memory at a time.

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
    """The world of a simulated folder, with the catalog read from its files. Raises UserError if it is not one."""
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
    """Ranks [rows] of the true and of the observed items by P(j | s), an order that no student can surpass.

    An item's rank is 1 + the number of more probable items. Where users choose the most probable item that is new to
    them, those that are not come last.
    """
    ranks = np.empty((2, len(rows)), np.int64)
    for start in range(0, len(rows), ORACLE_BLOCK):
        block = rows[start : start + ORACLE_BLOCK]
        probabilities = world.true_probabilities(chunk.tastes[block])
        if world.options.choice == "argmax":
            for place, row in enumerate(block):
                probabilities[place, _preferred_before(chunk, row, world.options.num_items) - 1] = -1
        for kind, items in enumerate((chunk.true_items, chunk.items)):
            of_items = probabilities[np.arange(len(block)), items[block] - 1]
            ranks[kind, start : start + ORACLE_BLOCK] = 1 + (probabilities > of_items[:, None]).sum(1)
    return ranks[0], ranks[1]


def _preferred_before(chunk: Chunk, row: int, num_items: int) -> np.ndarray:
    """The items that the user of a row has preferred before it, since the last time that none was left."""
    num = (row - int(np.searchsorted(chunk.users, chunk.users[row]))) % num_items
    return chunk.true_items[row - num : row]


def _write_catalog(world: World, folder: Path) -> None:
    num_items, starts = world.options.num_items, world.starts
    items = {
        "item": arrow(np.arange(1, num_items + 1), np.int32),
        "cluster": arrow(np.repeat(np.arange(1, len(starts)), np.diff(starts)), np.int32),
        "exposure": arrow(world.exposure),
        "factor": _lists(world.item_factors),
    }
    pq.write_table(pa.table(items), folder / "items.parquet", compression="zstd")
    clusters = {
        "cluster": arrow(np.arange(1, len(starts)), np.int32),
        "mass": arrow(world.masses),
        "factor": _lists(world.cluster_factors),
    }
    pq.write_table(pa.table(clusters), folder / "clusters.parquet", compression="zstd")


def _write_log(world: World, folder: Path, say: Say) -> dict[str, Any]:
    """Write the parts; return the number of replaced interactions, and the metrics of the true preferences."""
    num_chunks, num_interactions = world.options.num_chunks, world.options.num_interactions
    num_replaced = num_written = 0
    oracle: dict[str, Any] = {}
    for part, first in enumerate(range(0, num_chunks, PART_CHUNKS)):
        with pq.ParquetWriter(folder / f"part-{part:05d}.parquet", SCHEMA, compression="zstd") as writer:
            # A generator: one chunk is in memory at a time.
            for chunk in (world.chunk(number) for number in range(first, min(first + PART_CHUNKS, num_chunks))):
                oracle = oracle or _oracle(world, chunk)
                numbers = [chunk.users, chunk.items, chunk.timestamps, chunk.true_items]
                table = pa.table([arrow(column) for column in numbers], schema=SCHEMA)
                writer.write_table(table, row_group_size=len(chunk.users))
                num_replaced += int((chunk.items != chunk.true_items).sum())
                num_written += len(chunk.users)
        say(f"wrote {num_written:,} of {num_interactions:,} interactions")
    assert num_written == num_interactions
    return {"num_replaced": num_replaced, "oracle": oracle}


def _oracle(world: World, chunk: Chunk) -> dict[str, Any]:
    """Recall@10 and NDCG@10 of P(j | s) on the last interactions of the first users, for true and observed items."""
    last_rows = np.flatnonzero(np.diff(chunk.users, append=0))[:ORACLE_EXAMPLES]
    metrics: dict[str, Any] = {"examples": len(last_rows)}
    for name, ranks in zip(("true", "observed"), oracle_ranks(world, chunk, last_rows), strict=True):
        in_list = ranks <= 10
        metrics[name] = {
            "recall@10": float(in_list.mean()),
            "ndcg@10": float((in_list / np.log2(ranks + 1)).mean()),
        }
    return metrics


def _lists(factors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(arrow(factors.ravel()), factors.shape[1])


def _factors(table: pa.Table) -> np.ndarray:
    column = table["factor"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), -1)
