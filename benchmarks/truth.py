"""What soft labels gain on the items that simulated users truly preferred, over several logs of known_truth.parquet.

python benchmarks/truth.py

For each way of choosing, student and method: NDCG@10 of the true item less Base's, in points, on the log without noise
and over the six noisy ones together (two rates of three kinds), with the 95 % bootstrap interval over users, who are
the same in all logs; p of the t-test over users, by Holm's correction over all lines.
"""

from itertools import product
from pathlib import Path

import numpy as np
import polars as pl

from csrec_dist.evaluation.significance import Paired, holm, metric_values, paired

RESULTS = Path(__file__).with_name("results") / "known_truth.parquet"
BASE, METHODS = "Base", ("SoftRec", "CSRec-M", "CSRec-D", "CSRec-T")


def gain(runs: pl.DataFrame, method: str) -> Paired:
    """A method's NDCG@10 of the true item against Base's, over the rows of all logs and seeds that have one."""
    sides = [runs.filter(method=name).sort("noise", "seed") for name in (BASE, method)]
    first, second = (np.concatenate(side["true_ranks"].to_list()) for side in sides)
    known, users = first > 0, np.concatenate(sides[0]["users"].to_list())
    values = [metric_values("ndcg", ranks[known], 10) for ranks in (first, second)]
    return paired(*values, users=users[known])


def main() -> None:
    """Print a line for each way of choosing, student, noise and method."""
    results = pl.read_parquet(RESULTS)
    print(f"{len(results)} runs, seeds {', '.join(map(str, sorted(results['seed'].unique())))}\n")
    found = []
    for choice, student, is_noisy in product(("argmax", "draw"), ("gru4rec", "sasrec"), (False, True)):
        runs = results.filter((pl.col("noise") != "none") == is_noisy, choice=choice, student=student)
        found += [((choice, student, "noisy" if is_noisy else "clean", name), gain(runs, name)) for name in METHODS]
    for (about, test), p_value in zip(found, holm([test.p_value for _, test in found]), strict=True):
        low, high = 100 * test.low, 100 * test.high
        print(f"| {' | '.join(about)} | {100 * test.difference:+.2f} ({low:.2f} to {high:.2f}) | {p_value:.2g} |")


if __name__ == "__main__":
    main()
