"""What weighting a target by its rating changes, against ratings as implicit feedback: liked and disliked targets.

From the rows of study feedback_ratings, whose `implicit` and `weighted` runs have the same test rows: NDCG@10 of
targets rated at least 4 and of others, in percent, for each method and data set; the difference with its 95 % bootstrap
interval over users, and p of the paired t-test over users, corrected for the number of tests (Holm). Means over seeds.
The last line is one JSON object.
Run: python benchmarks/feedback.py [--results benchmarks/results/feedback_ratings.parquet]
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrec_dist.evaluation.significance import METRICS, holm, paired

RESULTS = Path(__file__).with_name("results") / "feedback_ratings.parquet"
KINDS = {"liked": 0, "disliked": 1}
"""The numbers of `rating_group`."""


def gains(runs: list[dict[str, Any]]) -> np.ndarray:
    """NDCG@10 of each test row, the mean over the runs."""
    ranks = np.array([run["ranks"] for run in runs], dtype=np.float64)
    return np.where(ranks <= 10, METRICS["ndcg"](ranks), 0.0).mean(0)


def changes(results: pl.DataFrame) -> list[dict[str, Any]]:
    """A line for each data set, method and kind of target; only seeds that both ways have."""
    lines = []
    for (data, method), cells in results.group_by("data", "method", maintain_order=True):
        sides = [cells.filter(pl.col("feedback") == name) for name in ("implicit", "weighted")]
        seeds = sorted(set(sides[0]["seed"]) & set(sides[1]["seed"]))
        if not seeds:
            continue
        runs = [side.filter(pl.col("seed").is_in(seeds)).sort("seed").to_dicts() for side in sides]
        first = runs[0][0]
        for run in (run for side in runs for run in side):
            assert (run["users"], run["rating_groups"]) == (first["users"], first["rating_groups"]), "other test rows"
        users, groups = np.array(first["users"]), np.array(first["rating_groups"])
        for kind, number in KINDS.items():
            chosen = groups == number
            test = paired(gains(runs[0])[chosen], gains(runs[1])[chosen], users=users[chosen])
            figures = [100 * value for value in (test.first, test.second, test.difference, test.low, test.high)]
            names = ("implicit", "weighted", "difference", "low", "high")
            line = {"data": data, "method": method, "targets": kind, "rows": test.count, "seeds": len(seeds)}
            lines.append(line | dict(zip(names, figures, strict=True)) | {"p": test.p_value})
    for line, p_value in zip(lines, holm([line["p"] for line in lines]), strict=True):
        line["p"] = p_value
    return lines


def main() -> None:
    """Print the lines and a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="results.parquet of the study")
    lines = changes(pl.read_parquet(parser.parse_args().results))
    for line in lines:
        print(
            f"{line['data']}  {line['method']}  {line['targets']} ({line['rows']:,}): {line['implicit']:.2f} to "
            f"{line['weighted']:.2f}, {line['difference']:+.2f} ({line['low']:+.2f} to {line['high']:+.2f}), "
            f"p {line['p']:.2g}"
        )
    print(json.dumps({"benchmark": "feedback", "date": str(date.today()), "lines": lines}))


if __name__ == "__main__":
    main()
