"""Whether soft labels should count less for examples on which the teachers disagree: a weight of the soft part.

Of Eq. 20 each example gets a β of its own, β v_i with mean v = 1 in every batch, so that soft labels weigh as much in
all as without: `linear` has v ∝ 1 − JS/ln 2, JS being the Jensen-Shannon divergence between the two teachers' own
predictions at T = 1, and `half` v = 2 for the half of a batch's examples on which they agree most, 0 for the others
(β v_i is cut at 1). `plain` is CSRec-M as it is; all three share their two teachers, which each seed draws anew.

The logs are simulated ones (the head of configs/studies/known_truth.yaml has their commands), whose true next items are
known: NDCG@10 of the true item on test in percent, means over the seeds; p is of the paired t-test over users, against
`plain`. One-process runs, which resume in the output folder. The last line is one JSON object.
Run: python benchmarks/agreement.py WORLD … [--output agreement] [--seeds 0 1 2] [--ranks FILE] [--set KEY=VALUE]
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl
import torch
from torch import Tensor

from csrec_dist import CSRec
from csrec_dist.config import load_config
from csrec_dist.evaluation.significance import paired
from csrec_dist.losses import FactoredLabels, Loss, SoftLabels, cross_entropy_parts, distillation_parts
from csrec_dist.models import ItemTable
from csrec_dist.options import MatmulPrecision
from csrec_dist.runs.stages import distill
from csrec_dist.training import LossFunction
from csrec_dist.training.options import TrainingOptions

CONFIG = Path(__file__).parents[1] / "configs/studies/base/known_truth.yaml"
NUM_MEMBERS = 2


def divergences(labels: FactoredLabels) -> Tensor:
    """The Jensen-Shannon divergence [n] between the two members, whose mean logits these labels are."""
    pairs = zip(labels.states.chunk(NUM_MEMBERS, 1), labels.item_weight.chunk(NUM_MEMBERS, 1), strict=True)
    logs = [(NUM_MEMBERS * states.double() @ weight.double().T).log_softmax(1) for states, weight in pairs]
    middle = torch.logaddexp(*logs) - math.log(2)
    return sum((log.exp() * (log - middle)).sum(1) / 2 for log in logs)  # type: ignore[return-value]


def linear(divergence: Tensor) -> Tensor:
    """v before it is scaled to mean 1."""
    return 1 - divergence / math.log(2)


def half(divergence: Tensor) -> Tensor:
    """The same, of the examples up to the median alone."""
    return (divergence <= divergence.median()).double()


FORMS: dict[str, Callable[[Tensor], Tensor]] = {"linear": linear, "half": half}


def by_agreement(form: Callable[[Tensor], Tensor]) -> Callable[[TrainingOptions], LossFunction]:
    """Makes the student's loss with β v_i."""

    def make(options: TrainingOptions) -> LossFunction:
        def loss_function(
            states: Tensor,
            table: ItemTable,
            targets: Tensor,
            labels: SoftLabels | None,
            weights: Tensor,
            precision: MatmulPrecision,
        ) -> Loss:
            assert isinstance(labels, FactoredLabels)
            assert labels.item_bias is None, "members of one width, without biases"
            trust = form(divergences(labels))
            betas = (options.beta * trust / trust.mean()).clamp(max=1).to(weights.dtype)
            bare = cross_entropy_parts(states, table, targets, weights=weights * (1 - betas), precision=precision)
            soft = distillation_parts(
                states,
                table,
                targets,
                labels,
                temperature=options.temperature,
                beta=1.0,
                kl=options.kl,
                weights=weights * betas,
                precision=precision,
            )
            return Loss(bare.sum + soft.sum, weights.sum(), bare.cross_entropy, soft.divergence)

        return loss_function

    return make


def runs_of(world: Path, seed: int, output: Path, overrides: Sequence[str]) -> dict[str, CSRec]:
    """Base, CSRec-M, and CSRec-M with each of `FORMS`, on a simulated log."""

    def run(name: str, *options: str) -> CSRec:
        keys = [f"name={world.name}-{name}-s{seed}", f"seed={seed}", f"output={output}", *options]
        sees_again = f"evaluation.exclude_seen={str(world.name.startswith('argmax')).lower()}"
        source = f"dataset.source={world.resolve() / 'log'}"
        return CSRec.from_config(load_config(CONFIG, [source, sees_again, *overrides, *keys]).dump())

    drawn = f"teachers.seed={100 + seed}"
    runs = {"Base": run("base", "method=base").fit(), "plain": run("plain", "method=model_level", drawn).fit()}
    members = [str(runs["plain"].folder.resolve() / "teachers" / name) for name in runs["plain"].config.member_names]
    for name, form in FORMS.items():
        with patch.object(distill, "student_loss", by_agreement(form)):
            runs[name] = run(name, "method=model_level", f"teachers.pretrained=[{', '.join(members)}]").fit()
    return runs


def true_ranks(world: Path, name: str, run: CSRec) -> pl.DataFrame:
    """The rank of each test row's true item."""
    ranks = pl.read_parquet(run.folder / "ranks" / "student-test.parquet")
    known = pl.lit(world.name).alias("world"), pl.lit(name).alias("run"), pl.lit(run.config.seed).alias("seed")
    return ranks.select(*known, "row", "user", "true_target", "true_rank")


def gains(ranks: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """NDCG@10 of the true item by test row, means over the seeds, and the rows' users."""
    rank = pl.col("true_rank")
    known = ranks.filter(rank > 0).with_columns(
        ndcg=pl.when(rank <= 10).then(math.log(2) / (rank + 1).log()).otherwise(0.0)
    )
    rows = known.group_by("row").agg(pl.col("user").first(), pl.col("ndcg").mean()).sort("row")
    return rows["ndcg"].to_numpy(), rows["user"].to_numpy()


def main() -> None:
    """Do the runs, print a line for each world and run, and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="+", type=Path, metavar="WORLD", help="folder of a simulated log")
    parser.add_argument("--output", type=Path, default=Path("agreement"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ranks", type=Path, metavar="FILE", help="write the ranks of the true items there")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key in all runs")
    args = parser.parse_args()
    tables = [
        true_ranks(world, name, run)
        for world in args.worlds
        for seed in args.seeds
        for name, run in runs_of(world, seed, args.output, args.set).items()
    ]
    ranks = pl.concat(tables)
    if args.ranks is not None:
        ranks.write_parquet(args.ranks)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for (world,), of_world in ranks.group_by("world", maintain_order=True):
        found = {str(name): gains(part) for (name,), part in of_world.group_by("run", maintain_order=True)}
        plain, users = found["plain"]
        for name, (values, _) in found.items():
            test = paired(plain, values, users=users)
            figures = [100 * value for value in (test.second, test.difference, test.low, test.high)]
            columns = dict(zip(("ndcg_true@10", "difference", "low", "high"), figures, strict=True))
            results.setdefault(str(world), {})[name] = columns | {"p": test.p_value}
            print(f"{world}  {name}  {100 * test.second:.2f}  {100 * test.difference:+.2f}  p {test.p_value:.2g}")
    print(json.dumps({"benchmark": "agreement", "date": str(date.today()), "seeds": args.seeds, "results": results}))


if __name__ == "__main__":
    main()
