"""How much of a run's figures comes from targets that training has of the same user.

The paper's windows of a user overlap, so that a test target can be a training target of another window. A model that
has learnt such a pair by heart finds it again. For each run this ranks apart

- repeated: targets that stand in their own history (never found where seen items are not ranked),
- leaked: others that are a training target of the same user (of another window, or of the same pair more than once),
- clean: all else,

and prints Recall@10 and NDCG@10 of the student on each, in percent, means over runs of one folder whose names differ in
their seed (…-s0, …-s1). With `--with-seen` the students rank the test rows again, the items of the history among all
others: what `evaluation.exclude_seen` hides. The last line is one JSON object.
Run: python benchmarks/leaks.py RUN …
"""

import argparse
import json
import math
import re
import statistics
from datetime import date
from pathlib import Path

import polars as pl
import torch

from csrec_dist.evaluation.ranking import target_ranks
from csrec_dist.recommend.ranked import states_of
from csrec_dist.recommend.recommender import Recommender

BATCH_SIZE = 512
GROUPS = ("repeated", "leaked", "clean")


def kinds(folder: Path) -> pl.DataFrame:
    """The group of each test row."""
    items = pl.col("items").list
    test = pl.read_parquet(folder / "test-*.parquet", columns=["row", "items", "leaked"])
    test = test.with_columns(repeated=items.head(items.len() - 1).list.contains(items.last()))
    kind = pl.when("repeated").then(pl.lit("repeated")).when("leaked").then(pl.lit("leaked")).otherwise(pl.lit("clean"))
    return test.select("row", kind=kind)


@torch.no_grad()
def ranked_with_seen(run: Path) -> pl.DataFrame:
    """The rank of each test row's target among all items, those of its history too."""
    model = Recommender.of_run(run).model.eval()
    test = pl.read_parquet(run / "dataset" / "test-*.parquet", columns=["row", "items"])
    ranks: list[int] = []
    for part in test.iter_slices(BATCH_SIZE):
        rows = part["items"].to_list()
        states = states_of(model, [items[:-1] for items in rows])
        ranks += target_ranks(states, model.item_table, torch.tensor([items[-1] for items in rows])).tolist()
    return test.select("row").with_columns(rank=pl.Series(ranks, dtype=pl.Int64))


def found(run: Path, with_seen: bool) -> dict[str, dict[str, float]]:
    """Rows, Recall@10 and NDCG@10 of each group and of all."""
    stored = run / "ranks" / "student-test.parquet"
    ranks = ranked_with_seen(run) if with_seen else pl.read_parquet(stored, columns=["row", "rank"])
    hit = pl.col("rank") <= 10
    rows = ranks.join(kinds(run / "dataset"), on="row", validate="1:1").with_columns(
        recall=hit.cast(pl.Float64), ndcg=pl.when(hit).then(math.log(2) / (pl.col("rank") + 1).log()).otherwise(0.0)
    )
    assert len(rows) == len(ranks), "the ranks are of other rows than the dataset's"
    parts = {name: rows.filter(pl.col("kind") == name) for name in GROUPS} | {"all": rows}
    return {
        name: {"rows": len(part), "recall@10": 100 * part["recall"].mean(), "ndcg@10": 100 * part["ndcg"].mean()}
        for name, part in parts.items()
        if len(part)
    }


def averaged(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over runs on the same rows."""
    rows = [{kind: values["rows"] for kind, values in run.items()} for run in runs]
    assert all(each == rows[0] for each in rows), f"runs that differ in their seed alone have other test rows: {rows}"
    return {
        kind: {name: statistics.mean(run[kind][name] for run in runs) for name in values}
        for kind, values in runs[0].items()
    }


def main() -> None:
    """Print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--with-seen", action="store_true", help="rank again, with the items of the history")
    args = parser.parse_args()
    by_seed: dict[Path, list[dict[str, dict[str, float]]]] = {}
    for run in args.runs:
        by_seed.setdefault(run.with_name(re.sub(r"-s\d+$", "", run.name)), []).append(found(run, args.with_seen))
    names = [path.name if [each.name for each in by_seed].count(path.name) == 1 else str(path) for path in by_seed]
    results = {name: averaged(seeds) for name, seeds in zip(names, by_seed.values(), strict=True)}
    kinds_found = [kind for kind in ("all", *GROUPS) if any(kind in groups for groups in results.values())]
    print("| run |", " | ".join(kinds_found), "|")
    print("|---|", "---|" * len(kinds_found), sep="")
    for name, groups in results.items():
        cells = (groups.get(kind) for kind in kinds_found)
        texts = (f"{cell['recall@10']:.2f} / {cell['ndcg@10']:.2f}" if cell else "–" for cell in cells)
        print(f"| {name} |", " | ".join(texts), "|")
    print(
        json.dumps({"benchmark": "leaks", "date": str(date.today()), "with_seen": args.with_seen, "results": results})
    )


if __name__ == "__main__":
    main()
