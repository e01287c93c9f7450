"""Stage evaluate: every trained model of the run on validation and test, and the members against each other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from csrec_dist import models
from csrec_dist.config import Config
from csrec_dist.data.batches import Batch, blank_batch, to_batch
from csrec_dist.data.order import owned_shards
from csrec_dist.distributed.catalog import CatalogSlice, in_step
from csrec_dist.distributed.layout import Layout
from csrec_dist.evaluation import evaluate
from csrec_dist.evaluation.diversity import DiversitySums, compare_members
from csrec_dist.evaluation.groups import ItemPopularity
from csrec_dist.evaluation.per_row import (
    RANKS_SCHEMA,
    Columns,
    TargetFacts,
    diversity_schema,
    join_parts,
    write_part,
)
from csrec_dist.evaluation.report_card import ReportCard
from csrec_dist.evaluation.scoring import Ensemble
from csrec_dist.files import flatten, parquet_checksums, remove, write_record
from csrec_dist.labels import read_index
from csrec_dist.models import SequentialModel
from csrec_dist.models.pretrained import read_description
from csrec_dist.process_state import matmul_precision
from csrec_dist.runs.run import hidden_targets
from csrec_dist.runs.stages.active import ActiveRun, check_dataset, check_labels, check_weights_of

EVALUATION_ROWS = 256


def trained_models(run: ActiveRun) -> dict[str, Path]:
    """Folder of each trained model of the run: the student first."""
    folders = {"student": run.folder / "student"}
    if run.config.baseline:
        folders["base"] = run.folder / "base"
    return folders | {name: run.member_folder(name) for name in run.config.member_names}


def check(run: ActiveRun, inputs: dict[str, Any]) -> None:
    """UserError on every rank when the dataset or a model is not what an earlier stage left."""
    check_dataset(run)
    base = {"base": inputs["base"]} if "base" in inputs else {}
    members = {f"teachers/{name}": weights for name, weights in inputs.get("members", {}).items()}
    check_weights_of(run, {"student": inputs["student"], **base, **members})
    if len(run.config.labelling_names) > 1:
        check_labels(run)  # they say how the members rank together


def work(run: ActiveRun, inputs: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the student, the baseline and the members into metrics.json, and ranks of test targets into ranks/."""
    results: dict[str, dict[str, Any]] = {}
    run.runtime.on_main(lambda: remove(run.path("ranks")))
    with run.log("evaluate") as log, matmul_precision(run.config.evaluation.matmul_precision):
        folders = trained_models(run)
        log.expect(len(folders))
        for name, folder in folders.items():
            model = load(run, folder)
            valid = evaluate_model(run, model, "valid", run.layout)
            results[name] = {"valid": valid, **results_on_test(run, [model], name)}
            log.advance(note=name)
            shown = ", ".join(f"{metric} {results[name]['test'][metric]:.4f}" for metric in ("recall@10", "ndcg@10"))
            log.say(f"{name}: test {shown}")
        student = results["student"]
        if hidden := hidden_targets(student["groups"], run.config.evaluation.exclude_seen):
            log.say(hidden)
        log.hparams(hparams(run.config))
        log.scalars({f"test/{name}": value for name, value in student["test"].items()}, 0)
    with matmul_precision(run.config.evaluation.matmul_precision):
        metrics = {**student, "models": results | ensemble_results(run)}
        if run.config.evaluation.diversity and len(run.config.member_names) > 1:
            metrics["diversity"] = diversity(run)

    def on_main() -> dict[str, str]:
        write_record(run.path("metrics.json"), metrics)
        return parquet_checksums(run.path("ranks"))

    return {"test": student["test"], "ranks": run.runtime.on_main(on_main)}


def load(run: ActiveRun, folder: Path) -> SequentialModel:
    """A trained model on this rank's device, or its share of one: see `ActiveRun.tables`."""
    read_description(folder).require_items(run.dataset.num_items, folder)
    return models.load(folder, run.tables).to(run.runtime.device)


def ensemble_results(run: ActiveRun) -> dict[str, Any]:
    """The results of the members whose logits make the soft labels, ranking together (Table 5); none of one member."""
    if len(run.config.member_names) < 2 or len(run.config.labelling_names) < 2:
        return {}
    index = read_index(run.folder / "labels")
    weights = index.weights or [1 / len(index.members)] * len(index.members)
    members = [load(run, run.member_folder(name)) for name in run.config.labelling_names]
    return {"teachers": results_on_test(run, members, "teachers", Ensemble(index.combine, weights))}


def results_on_test(
    run: ActiveRun,
    members: Sequence[SequentialModel],
    name: str,
    ensemble: Ensemble | None = None,
) -> dict[str, Any]:
    """The results of a model, or of members together, on test; the ranks go into ranks/<name>-test.parquet."""
    dataset, popularity = run.dataset, ItemPopularity.read(run.dataset)
    card = ReportCard(run.config.evaluation, dataset.window - 1, popularity, run.runtime.device)

    def shard_ranks(shard: int | None) -> Iterator[Columns]:
        facts = TargetFacts.none() if shard is None else TargetFacts.read(dataset, shard)
        return card.shard(members, shard_rows(run, shard), facts, ensemble)

    write_test_rows(run, f"{name}-test.parquet", RANKS_SCHEMA, shard_ranks)
    return card.compute(run.runtime.world.all_reduce_sum)


def diversity(run: ActiveRun) -> dict[str, Any]:
    """How much the members differ on test; the values of each row go into ranks/diversity-test.parquet."""
    members = [load(run, run.member_folder(name)) for name in run.config.member_names]
    sums = DiversitySums(run.config.member_names, run.config.evaluation.cut_offs, run.runtime.device)

    def shard_differences(shard: int | None) -> Iterator[Columns]:
        exclude_seen = run.config.evaluation.exclude_seen
        return compare_members(members, shard_rows(run, shard), sums, exclude_seen=exclude_seen)

    write_test_rows(run, "diversity-test.parquet", diversity_schema(sums.names), shard_differences)
    sums.tensor = run.runtime.world.all_reduce_sum(sums.tensor)
    return sums.compute()


def shard_rows(run: ActiveRun, shard: int | None) -> Iterator[Batch]:
    """A shard's test rows on the device, in batches that do not depend on the number of ranks; none of no shard."""
    catalog = CatalogSlice.of(run.dataset.num_items, run.tables)
    return evaluation_batches(run, "test", [] if shard is None else [shard], catalog)


def write_test_rows(
    run: ActiveRun, name: str, schema: pa.Schema, shard_columns: Callable[[int | None], Iterable[Columns]]
) -> None:
    """Write one file of test rows into ranks/, all ranks together, each its own shards.

    Ranks that share the catalog meet in the collectives of every batch, so they go through equally many shards: those
    that have fewer go through none at the end.
    """
    path, world = run.path(f"ranks/{name}"), run.runtime.world_size
    shards: list[int | None] = list(owned_shards(run.dataset.num_shards, run.runtime.rank, world))
    if run.tables.size > 1:
        shards += [None] * (-(-run.dataset.num_shards // world) - len(shards))

    def write_mine() -> None:
        write_part(path, run.runtime.rank, schema, map(shard_columns, shards))

    run.runtime.world.on_all(write_mine, "the test rows", meets=run.tables.size > 1)
    num_rows = run.dataset.splits["test"].num_rows
    run.runtime.on_main(lambda: join_parts(path, world, num_rows, schema))


def hparams(config: Config) -> dict[str, Any]:
    """The settings that TensorBoard's HParams page shows."""
    dumped = config.dump()
    sections = ["model", "training", *(["teachers", "labels"] if config.num_members else [])]
    shown = flatten({section: dumped[section] for section in sections})
    return {"method": config.method, "seed": config.seed} | {k: v for k, v in shown.items() if v is not None}


def evaluate_model(run: ActiveRun, model: SequentialModel, split: str, layout: Layout) -> dict[str, float]:
    """Metrics of a model on all rows of a split, each rank of the layout reading its own shards."""
    shards, options = owned_shards(run.dataset.num_shards, layout.group.rank, layout.group.size), run.config.evaluation
    with matmul_precision(options.matmul_precision):
        return evaluate(
            model,
            evaluation_batches(run, split, shards, model.item_table.catalog),
            top_n=options.cut_offs,
            exclude_seen=options.exclude_seen,
            reduce=partial(layout.group.sum_after_work, name="the sums of an evaluation"),
        )


def evaluation_batches(run: ActiveRun, split: str, shards: Sequence[int], catalog: CatalogSlice) -> Iterator[Batch]:
    """The rows of some shards on the device; where ranks share an item table, equally many batches on each of them."""
    device, window = run.runtime.device, run.dataset.window
    rows = run.dataset.stream(split, batch_size=EVALUATION_ROWS, shards=shards)
    batches = run.runtime.watch.reading(map(to_batch, rows))
    batches = in_step(batches, catalog, device, lambda: blank_batch(window))
    return (batch.to(device) for batch in batches)
