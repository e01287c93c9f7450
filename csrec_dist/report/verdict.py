"""The last sentence on the terminal: what soft labels gained in one run, how sure that is, and what to do next."""

import numpy as np

from csrec_dist.evaluation.options import metric_title
from csrec_dist.evaluation.significance import Paired, metric_values, paired
from csrec_dist.runs.run import Evaluated, Run
from csrec_dist.teachers import METHODS
from csrec_dist.training.limits import SELECTION_METRIC

SEEDS = "train further seeds (--set seed=1 --set name={name}_s1, …) and give them all to csrec-dist compare"
TUNE = "choose training.temperature and training.beta on validation with csrec-dist tune"


def verdict(run: Run) -> str:
    """One sentence on the student against the Base of the same run, by NDCG@10 of the same test rows, and another on
    what to do next. Empty without a Base, or without the ranks of both."""
    models = [Evaluated(run, name) for name in ("base", "student")]
    if not run.config.baseline or not run.metrics or not all(model.path.exists() for model in models):
        return ""
    kind, _, n = SELECTION_METRIC.partition("@")
    base, student = (metric_values(kind, np.asarray(model.ranks["rank"]), int(n)) for model in models)
    if len(base) < 2:
        return ""
    return sentence(METHODS[run.config.method].title, run.config.name, paired(base, student))


def sentence(method: str, name: str, test: Paired) -> str:
    """The verdict on a method in the run of this name; `test` is of Base and student."""
    change = f" ({test.difference / test.first:+.1%})" if test.first else ""
    figures = (
        f"{metric_title(SELECTION_METRIC)} {test.second:.4f} against {test.first:.4f}{change}, difference "
        f"{test.difference:+.4f}, 95 % interval {test.low:+.4f} to {test.high:+.4f}, p = {test.p_value:.2g}, over "
        f"{test.count:,} test rows"
    )
    seeds = SEEDS.format(name=name)
    if test.difference <= 0:
        word = "is below Base" if test.is_significant else "shows no gain over Base"
        return f"In this one run {method} {word}: {figures}. Next: {TUNE}, or {seeds}."
    if not test.is_significant:
        return (
            f"In this one run {method} is above Base, but within chance, so no gain is shown: {figures}. Next: {seeds}."
        )
    return f"{method} gains on Base: {figures}. Next: to see whether it does with every seed, {seeds}."
