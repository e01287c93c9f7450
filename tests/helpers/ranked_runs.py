"""Ranks of test targets for the made-up runs of run_folders, and what is computed of them."""

from pathlib import Path

import numpy as np
import polars as pl

from csrec_dist.files import read_json, write_json


def write_ranks(run: Path, shifts: dict[str, int], num_rows: int = 400, seed: int = 0) -> dict[str, np.ndarray]:
    """Write the ranks of each model, which are lower, so better, by its shift; and its metrics. The ranks by model."""
    random = np.random.default_rng(seed)
    difficulty = random.integers(1, 60, num_rows)
    (run / "ranks").mkdir(exist_ok=True)
    saved, rows, ranks = read_json(run / "metrics.json"), np.arange(num_rows), {}
    for model, shift in shifts.items():
        ranks[model] = np.maximum(difficulty + random.integers(-3, 4, num_rows) - shift, 1)
        columns = {"row": rows, "user": rows, "target": rows, "rank": ranks[model], "rating": [None] * num_rows}
        frame = pl.DataFrame(columns).with_columns(pl.col("rating").cast(pl.Float32))
        frame.write_parquet(run / "ranks" / f"{model}-test.parquet")
        saved["models"][model]["test"] |= {
            "ndcg@10": float(ndcg(ranks[model]).mean()),
            "recall@10": float((ranks[model] <= 10).mean()),
        }
    write_json(run / "metrics.json", saved)
    return ranks


def ndcg(ranks: np.ndarray) -> np.ndarray:
    """NDCG@10 of each row."""
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1.0), 0.0)
