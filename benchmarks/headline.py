"""Print the README's table of Last.FM, and gains averaged over its students, from results/table3_lastfm.parquet.

python benchmarks/headline.py

A cell is Recall@10 / NDCG@10 in percent, the mean over its seeds. Gains are of NDCG@10 over Base, in points, with 95 %
intervals by the bootstrap over users, each with all its test rows; a row's value is its mean over the seeds and, for
all students together, over these. The gains of each seed follow. CPU seconds are multiples of Base's, averaged over
students.
"""

import re
from pathlib import Path

import numpy as np
import polars as pl

from csrec_dist.evaluation.significance import Paired, metric_values, paired

RESULTS = Path(__file__).with_name("results") / "table3_lastfm.parquet"
NAMES = {
    "gru4rec": "GRU4Rec", "nextitnet": "NextItNet", "narm": "NARM", "sasrec": "SASRec", "bert4rec": "BERT4Rec",
    "srgnn": "SRGNN", "dreamrec": "DreamRec", "cl4srec": "CL4SRec",
}  # fmt: skip
BASE, SHOWN = "Base", "CSRec-M"
METHODS = (BASE, "SoftRec", SHOWN, "CSRec-D", "CSRec-T")
METRICS = ("recall", "ndcg")


def row_values(runs: pl.DataFrame, metric: str, **chosen: str) -> np.ndarray:
    """A metric at 10 of each test row [N], the mean over the runs with these values of student and method."""
    ranks = np.array(runs.filter(**chosen)["ranks"].to_list())
    return metric_values(metric, ranks, 10).mean(0)


def gain(runs: pl.DataFrame, method: str, **chosen: str) -> Paired:
    """NDCG@10 of a method against Base's, of all students or of the one that is chosen."""
    first, second = (row_values(runs, "ndcg", method=name, **chosen) for name in (BASE, method))
    return paired(first, second, users=np.array(runs["users"][0]))


def points(value: float) -> str:
    """A difference of shares in points: two digits, no zero before the point."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{100 * value:.2f}").replace("-", "−")


def with_interval(test: Paired) -> str:
    """A gain and its interval."""
    return f"{'+' if test.difference > 0 else ''}{points(test.difference)} ({points(test.low)} to {points(test.high)})"


def table(runs: pl.DataFrame) -> list[str]:
    """The lines of the README's table, a student each; the best recall and the best NDCG are bold."""
    lines = []
    for student, name in NAMES.items():
        values = np.array(
            [[row_values(runs, each, student=student, method=method).mean() for each in METRICS] for method in METHODS]
        )
        is_best = values == values.max(0)
        cells = [_cell(*texts) for texts in zip(100 * values, is_best, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} | {with_interval(gain(runs, SHOWN, student=student))} |")
    return lines


def _cell(values: np.ndarray, is_best: np.ndarray) -> str:
    texts = [f"{value:.1f}" for value in values]
    if is_best.all():
        return f"**{' / '.join(texts)}**"
    return " / ".join(f"**{text}**" if bold else text for text, bold in zip(texts, is_best, strict=True))


def costs(runs: pl.DataFrame, method: str) -> float:
    """CPU seconds as multiples of Base's, the mean over students."""
    seconds = runs.group_by("student", "method").agg(pl.mean("cpu_seconds"))
    base, other = (seconds.filter(method=name).sort("student")["cpu_seconds"] for name in (BASE, method))
    return float((other / base).mean())  # type: ignore[arg-type]


def main() -> None:
    """Print both kinds of windows."""
    results = pl.read_parquet(RESULTS)
    for windows in ("disjoint", "paper"):
        runs = results.filter(windows=windows)
        seeds = sorted(runs["seed"].unique())
        print(f"{windows}: {len(runs)} runs, seeds {', '.join(map(str, seeds))}\n", *table(runs), "", sep="\n")
        for method in METHODS[1:]:
            by_seed = ", ".join(points(gain(runs.filter(seed=seed), method).difference) for seed in seeds)
            cost = f"{costs(runs, method):.1f} times the CPU time"
            print(f"{method}: {with_interval(gain(runs, method))}; {by_seed}; {cost}")
        print()


if __name__ == "__main__":
    main()
