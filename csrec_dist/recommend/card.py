"""The model card of a run's student: data, protocol, metrics with intervals, method, versions, limits."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from csrec_dist import __version__
from csrec_dist.data.card import described
from csrec_dist.evaluation.significance import METRICS, mean_interval
from csrec_dist.hub import bullets, card, code, table
from csrec_dist.runs.run import Evaluated, Run
from csrec_dist.teachers import METHODS

CUT_OFF = 10
USE = """\
from csrec_dist import Recommender

rec = Recommender.from_pretrained("FOLDER OR HUB NAME")
rec.recommend(histories=[[{example}]], top_n=10, exclude_seen=True)"""


def model_card(run: Run) -> str:
    """The card as Markdown, opened by what the Hub reads; of a run that is not evaluated, without metrics."""
    tags = ["sequential-recommendation", "recommender", run.config.model.name]
    return card({"library_name": "csrec_dist", "tags": tags}, _sections(run))


def _sections(run: Run) -> Iterator[str]:
    config, dataset = run.config, run.dataset
    items = pq.read_table(dataset.file("items.parquet"), columns=["raw"])["raw"]
    yield f"# {config.name}"
    yield (
        f"A sequential recommender ({config.model.name}, width {config.model.width}) that gives the next items after a "
        f"history of up to {dataset.window - 1} of {dataset.num_items:,} items; {_method(run)}"
    )
    yield code(USE.format(example=", ".join(repr(raw) for raw in items[:2].to_pylist())))
    yield "## Data"
    yield table(["", "value"], described(run.dataset))
    yield "## Evaluation"
    yield _protocol(run)
    yield from _metrics(run)
    yield "## Training"
    yield table(["", "value"], _training(run))
    yield "## Limits"
    yield bullets(_limits(run))


def _method(run: Run) -> str:
    config = run.config
    if config.method == "base":
        return "trained on one-hot next items alone."
    learnt = f"trained by {METHODS[config.method].title} on one-hot next items mixed with soft labels"
    return f"{learnt} of {len(config.labelling_names)} teachers." if config.num_members else f"{learnt}."


def _protocol(run: Run) -> str:
    rows, hidden = run.dataset.splits["test"].num_rows, run.config.evaluation.exclude_seen
    leaked = run.dataset.statistics.get("leaked_test_targets", 0)
    split = run.dataset.info.get("options", {}).get("split")
    targets = {
        "leave_one_out": "the last item of each window",
        "temporal": "an item of each user after a cut in global time",
    }
    seen = "without those of the history" if hidden else "those of the history included"
    return (
        f"{rows:,} test targets ({targets.get(split, split)}), each ranked among all {run.dataset.num_items:,} items, "
        f"{seen}; ties count against the target. {leaked:,} of the targets are training targets of the same user, too."
    )


def _metrics(run: Run) -> Iterator[str]:
    if not run.metrics:
        yield "The run is not evaluated."
        return
    titles = {
        result.name: result.title for result in run.results if result.test and Evaluated(run, result.name).path.exists()
    }
    if not titles:
        yield "The ranks of the test rows are not there, so there are no intervals; metrics.json has the means."
        return
    rows = [[title, *_intervals(run, name)] for name, title in titles.items()]
    yield table(["model", *(f"{name.upper() if name != 'recall' else 'Recall'}@{CUT_OFF}" for name in METRICS)], rows)
    yield "In brackets: 95 % percentile bootstrap over users, for this one training; other seeds vary besides."


def _intervals(run: Run, model: str) -> Iterator[str]:
    """Each metric of a model and its interval."""
    ranks, users = (Evaluated(run, model).ranks[name].to_numpy() for name in ("rank", "user"))
    for worth in METRICS.values():
        values = worth(ranks) * (ranks <= CUT_OFF)
        if len(np.unique(users)) < 2:
            yield f"{values.mean():.4f}"
            continue
        mean, low, high = mean_interval(values, users=users)
        yield f"{mean:.4f} ({low:.4f} to {high:.4f})"


def _training(run: Run) -> Iterator[tuple[str, str]]:
    config, training = run.config, run.trainings.get("student", {})
    yield "model", ", ".join(f"{key} {value}" for key, value in config.model.model_dump(mode="json").items())
    if config.method != "base":
        options = config.training
        yield "loss", f"temperature {options.temperature:g}, beta {options.beta:g}, kl {options.kl}"
    if config.num_members:
        models = [model.name for model in config.teacher_models]
        yield "teachers", f"{', '.join(models)}; {config.labels.combine}, {config.labels.form} labels"
    settings = run.training
    yield "batches", f"{settings.batch_size} windows, learning rate {settings.learning_rate:g} ({settings.schedule})"
    if training.get("epochs"):
        yield "epochs", f"{len(training['epochs'])}, the best by validation NDCG@10 is {training['best_epoch'] + 1}"
    record = run.record("distill")
    made_with: Mapping[str, Any] = record.environment if record else {}
    yield "versions", ", ".join([f"csrec_dist {__version__}", *(f"{key} {value}" for key, value in made_with.items())])
    yield "seed", str(config.seed)


def _limits(run: Run) -> Iterator[str]:
    dataset, test = run.dataset, run.metrics
    yield f"It knows the {dataset.num_items:,} items of items.parquet; new ones need a new training. Users may be new."
    yield f"Of a history it reads the latest {dataset.window - 1} items, and only their order, not their times."
    unseen = dataset.statistics.get("test_targets_never_in_training", 0)
    if unseen:
        yield f"{unseen:,} of the test targets never occur in training."
    lists = test.get("lists", {})
    if f"coverage@{CUT_OFF}" in lists:
        yield (
            f"Lists of {CUT_OFF} for the test histories show {lists[f'coverage@{CUT_OFF}']:.1%} of the items, with a "
            f"Gini index of {lists[f'gini@{CUT_OFF}']:.2f} (0: all items equally often)."
        )
    if "ece" in test.get("calibration", {}):
        error = test["calibration"]["ece"]
        yield f"Scores are logits; as probabilities they have an expected calibration error of {error:.3f}."
    yield "Offline metrics on logged clicks do not say what people would do with other recommendations."
