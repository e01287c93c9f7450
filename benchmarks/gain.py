"""What the student gains over Base, against what its teachers cost, how well they rank and how much they differ.

From the rows of a finished study (the parquet that `study` writes): for each student, method and seed the gain of the
student's NDCG@10 over Base of the same seed, in points; CPU seconds of teachers, labels and student as multiples of
Base's; the teachers' own gain; and the mean Jensen-Shannon divergence between the teachers. Prints Spearman's rank
correlations with the gain, over all methods and within each, with p-values (cells of one student are not independent,
so these say what to look at and not how sure it is), and draws the three. The last line is one JSON object.
Run: python benchmarks/gain.py [--results benchmarks/results/table3_lastfm.parquet] [--windows disjoint]
"""

import argparse
import json
from datetime import date
from pathlib import Path

import polars as pl
from scipy.stats import spearmanr

from csrec_dist.report.charts import add_legend, panels_figure, save_picture, series_colours, themed

RESULTS = Path(__file__).with_name("results")
NDCG, TEACHER, DIVERSITY = "ndcg@10", "teacher/ndcg@10", "diversity/jensen_shannon"
AXES = {
    "cost": "CPU seconds, multiples of Base's",
    "teachers_gain": "teachers' NDCG@10 − Base's, points",
    "diversity": "teachers' Jensen-Shannon divergence",
}


def cells(results: pl.DataFrame) -> pl.DataFrame:
    """One row for each student, method and seed but Base: its gain, cost, teachers' gain and diversity."""
    base = results.filter(pl.col("method") == "Base").select(
        "student", "seed", base=NDCG, base_seconds=pl.mean("cpu_seconds").over("student")
    )
    others = results.filter(pl.col("method") != "Base").join(base, on=["student", "seed"], validate="m:1")
    return others.select(
        "student",
        "method",
        "seed",
        gain=100 * (pl.col(NDCG) - pl.col("base")),
        cost=pl.col("cpu_seconds") / pl.col("base_seconds"),
        teachers_gain=100 * (pl.col(TEACHER) - pl.col("base")),
        diversity=pl.col(DIVERSITY),
    )


def correlations(rows: pl.DataFrame) -> dict[str, dict[str, tuple[float, float, int]]]:
    """Spearman's coefficient with the gain, its p and the number of cells, by what is compared and by method."""
    found: dict[str, dict[str, tuple[float, float, int]]] = {}
    for name in AXES:
        known = rows.drop_nulls(name)
        parts = {"all": known, **{str(key[0]): part for key, part in known.group_by("method", maintain_order=True)}}
        for method, part in parts.items():
            if len(part) > 2:
                coefficient, p_value = spearmanr(part[name], part["gain"])
                found.setdefault(name, {})[method] = (float(coefficient), float(p_value), len(part))
    return found


def draw(rows: pl.DataFrame, name: str) -> None:
    """A panel for each of `AXES`, a mark for each cell; <name>.png beside the results."""
    methods = rows["method"].unique(maintain_order=True).to_list()
    colours, legend = series_colours(methods), {}
    with themed():
        figure = panels_figure(len(AXES))
        for plot, (column, title) in zip(figure.axes, AXES.items(), strict=True):
            for method in methods:
                part = rows.filter(pl.col("method") == method).drop_nulls(column)
                if len(part):
                    marks = plot.scatter(part[column], part["gain"], color=colours[method], s=22, label=method)
                    legend.setdefault(method, marks)
            plot.axhline(0, color="0.5", linewidth=1)
            plot.set_xlabel(title)
            plot.set_ylabel("gain in NDCG@10, points")
        add_legend(figure, legend, "method")
        save_picture(figure, "gain over Base against cost, teachers and diversity", name, RESULTS)


def main() -> None:
    """Print the cells and the correlations, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "table3_lastfm.parquet")
    parser.add_argument("--windows", default="disjoint")
    arguments = parser.parse_args()
    rows = cells(pl.read_parquet(arguments.results).filter(pl.col("windows") == arguments.windows))
    means = rows.group_by("student", "method", maintain_order=True).mean().drop("seed")
    with pl.Config(tbl_rows=-1, tbl_formatting="MARKDOWN", float_precision=3, tbl_hide_dataframe_shape=True):
        print(means)
    found = correlations(rows)
    for name, parts in found.items():
        print(name, "; ".join(f"{method} {c:+.2f} (p = {p:.2g}, {n})" for method, (c, p, n) in parts.items()))
    draw(rows, f"gain_{arguments.windows}")
    print(json.dumps({"date": str(date.today()), "results": arguments.results.name, "correlations": found}))


if __name__ == "__main__":
    main()
