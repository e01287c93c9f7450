"""Two ways to make an ensemble of teachers that the product does not have: one after the other, and stacked by example.

Sequential teachers (as born-again networks, Furlanello et al., 2018): the first is trained on one-hot labels, each
later one is a student of the one before it. Three of them teach a student by their mean logits (`sequence`), or the
last one does alone (`last`); beside them are three that are trained independently, as in CSRec-M (`independent`), whose
first one is also the first of the sequence.

Stacking by example: the members' logits are summed with weights softmax(A x), where x are what the members' own
predictions say of the example: each one's entropy and largest log-probability, and the length of the history. A is
fitted on validation (with a penalty of 0.001 on its squares, which was not tuned), and the sum ranks the test targets,
beside the mean and one weight for each member, fitted on the same examples. No student is trained on it.

All runs are GRU4Rec's on Last.FM in windows without overlap (configs/studies/base/lastfm.yaml; `pair` has a SASRec as
its second teacher), in an output folder where they resume. Percent, means over the seeds; p is of the paired t-test
over users. `--ranks` writes the students' ranks of the test targets. The last line is one JSON object.
Run: python benchmarks/ensembles.py LOG [--output ensembles] [--seeds 0 1] [--set KEY=VALUE] [--ranks FILE]
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from csrec_dist import CSRec
from csrec_dist.config import load_config
from csrec_dist.evaluation.significance import paired
from csrec_dist.labels.weights import fit_weights
from csrec_dist.models import SequentialModel
from csrec_dist.recommend.ranked import states_of
from csrec_dist.report.paired import compare_models

CONFIG = Path(__file__).parents[1] / "configs/studies/base/lastfm.yaml"
NUM_MEMBERS = 3
PENALTY = 1e-3
MIXED = "[{name: gru4rec}, {name: sasrec}]"
METRICS = ("recall@10", "ndcg@10")


class Rows(NamedTuple):
    """The examples of a split: users [N], histories, targets [N]."""

    users: np.ndarray
    histories: list[list[int]]
    targets: Tensor


def rows_of(run: CSRec, split: str) -> Rows:
    """Those of a run's own dataset."""
    table = pl.read_parquet(run.folder / "dataset" / f"{split}-*.parquet", columns=["user", "items"])
    items = table["items"].to_list()
    return Rows(table["user"].to_numpy(), [row[:-1] for row in items], torch.tensor([row[-1] for row in items]))


class Stack:
    """The members' logits [N, m, V] of some examples, and what each says of an example: [N, 2m + 1]."""

    def __init__(self, models: Sequence[SequentialModel], rows: Rows) -> None:
        self.rows, self.tables = rows, [model.item_table for model in models]
        self.states = [states_of(model, rows.histories) for model in models]
        with torch.no_grad():
            scores = [
                state @ table.weight.T + (0 if table.bias is None else table.bias)
                for state, table in zip(self.states, self.tables, strict=True)
            ]
        self.logits = torch.stack(scores, dim=1).double()
        logs = self.logits.log_softmax(2)
        lengths = torch.tensor([len(history) for history in rows.histories]).double().log()
        self.features = torch.cat([-(logs.exp() * logs).sum(2), logs.amax(2), lengths.unsqueeze(1)], dim=1)

    def mixed(self, weights: Tensor) -> Tensor:
        """Logits [N, V] with weights [m], or [N, m]."""
        return torch.einsum("nmv,nm->nv", self.logits, weights.expand(len(self.logits), -1))

    def loss(self, logits: Tensor) -> Tensor:
        """The mean −log softmax at the targets."""
        return torch.nn.functional.cross_entropy(logits, self.rows.targets - 1)

    def ndcg(self, logits: Tensor) -> np.ndarray:
        """NDCG@10 [N], seen items left out."""
        logits = logits.clone()
        for row, history in zip(logits, self.rows.histories, strict=True):
            row[torch.tensor(history) - 1] = -torch.inf
        ranks = (logits >= logits.gather(1, self.rows.targets.unsqueeze(1) - 1)).sum(1).clamp(min=1).numpy()
        return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)


def by_example(fitted_on: Stack, asked: Stack) -> Tensor:
    """Weights [N, m] of the examples that are `asked`, by what was fitted on others."""
    mean, spread = fitted_on.features.mean(0), fitted_on.features.std(0)

    def inputs(stack: Stack) -> Tensor:
        scaled = (stack.features - mean) / spread
        return torch.cat([scaled, torch.ones(len(scaled), 1, dtype=scaled.dtype)], dim=1)

    known = inputs(fitted_on)
    matrix = torch.zeros(known.shape[1], fitted_on.logits.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([matrix], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = fitted_on.loss(fitted_on.mixed((known @ matrix).softmax(1))) + PENALTY * matrix.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (inputs(asked) @ matrix.detach()).softmax(1)


def stacked(run: CSRec) -> dict[str, dict[str, float]]:
    """−log p and NDCG@10 on test of the members' sum with weights of three kinds; p of NDCG@10 against the mean."""
    models = [run.teachers[name] for name in run.config.member_names]
    valid, test = (Stack(models, rows_of(run, split)) for split in ("valid", "test"))
    fitted = fit_weights(valid.states, valid.tables, valid.rows.targets).weights
    weights = {
        "mean": torch.full((len(models),), 1 / len(models)).double(),
        "fitted": torch.tensor(fitted).double(),
        "by example": by_example(valid, test),
    }
    logits = {name: test.mixed(weight) for name, weight in weights.items()}
    first = test.ndcg(logits["mean"])
    found = {}
    for name, scores in logits.items():
        result = paired(first, test.ndcg(scores), users=test.rows.users)
        found[name] = {"loss": test.loss(scores).item(), "ndcg@10": 100 * result.second, "p": result.p_value}
    return found


def runs_of(seed: int, output: Path, overrides: Sequence[str]) -> dict[str, CSRec]:
    """By name: Base, and the students of what the head of this file names."""

    def fit(name: str, method: str, seed_of_run: int, *options: str) -> CSRec:
        keys = [f"name={name}-s{seed}", f"method={method}", f"seed={seed_of_run}", f"output={output}"]
        return CSRec.from_config(load_config(CONFIG, [*overrides, *keys, *options]).dump()).fit()

    drawn = 100 + seed
    independent = fit("independent", "model_level", seed, f"teachers.num={NUM_MEMBERS}", f"teachers.seed={drawn}")
    sequence = [str(independent.folder.resolve() / "teachers" / independent.config.member_names[0])]
    for number in range(1, NUM_MEMBERS):
        taught_by = f"teachers.pretrained=[{sequence[-1]}]"
        generation = fit(f"generation-{number}", "model_level", 1000 * number + seed, taught_by)
        sequence.append(str(generation.folder.resolve() / "student"))
    return {
        "Base": fit("base", "base", seed),
        "independent": independent,
        "sequence": fit("sequence", "model_level", seed, f"teachers.pretrained=[{', '.join(sequence)}]"),
        "last": fit("last", "model_level", seed, f"teachers.pretrained=[{sequence[-1]}]"),
        "pair": fit("pair", "model_level", seed, f"teachers.model={MIXED}", f"teachers.seed={drawn}"),
    }


def students(runs: Sequence[dict[str, CSRec]]) -> dict[str, dict[str, float]]:
    """Recall@10 and NDCG@10 of the students and of their teachers on test, with p-values against `independent`."""
    found = {}
    for name in runs[0]:
        sides = [",".join(str(of_seed[side].folder) for of_seed in runs) for side in ("independent", name)]
        lines = compare_models(*sides)
        values: dict[str, float] = {}
        for metric in METRICS:
            line = lines.line(metric)
            assert line is not None
            values |= {metric: 100 * line.paired.second, f"p {metric}": line.paired.p_value}
        if name != "Base":
            models = [of_seed[name].metrics["models"] for of_seed in runs]
            ranked = [of_seed.get("teachers", of_seed["teacher-0"]) for of_seed in models]
            values |= {f"teachers {m}": 100 * statistics.mean(model["test"][m] for model in ranked) for m in METRICS}
        found[name] = values
    return found


def ranks_of(runs: Sequence[dict[str, CSRec]]) -> pl.DataFrame:
    """The ranks of all students, a row for each run, seed and test row."""
    tables = [
        pl.read_parquet(run.folder / "ranks" / "student-test.parquet").select(
            pl.lit(name).alias("run"), pl.lit(run.config.seed).alias("seed"), "row", "user", "target", "rank"
        )
        for of_seed in runs
        for name, run in of_seed.items()
    ]
    return pl.concat(tables)


def main() -> None:
    """Do the runs, print both tables and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="Last.FM's interactions, as the study's dataset.source")
    parser.add_argument("--output", type=Path, default=Path("ensembles"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ranks", type=Path, metavar="FILE", help="write the ranks of the test targets there")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key in all runs")
    args = parser.parse_args()
    overrides = [f"dataset.source={args.log.resolve()}", *args.set]
    runs = [runs_of(seed, args.output, overrides) for seed in args.seeds]
    if args.ranks is not None:
        ranks_of(runs).write_parquet(args.ranks)
    taught = students(runs)
    sums = {
        name: [{"seed": seed, **stacked(of_seed[name])} for seed, of_seed in zip(args.seeds, runs, strict=True)]
        for name in ("independent", "pair")
    }
    for name, values in taught.items():
        print(name, *(f"{key} {value:.3g}" for key, value in values.items()), sep="  ")
    for name, by_seed in sums.items():
        print(name, *by_seed, sep="\n  ")
    print(json.dumps({"benchmark": "ensembles", "date": str(date.today()), "students": taught, "stacked": sums}))


if __name__ == "__main__":
    main()
