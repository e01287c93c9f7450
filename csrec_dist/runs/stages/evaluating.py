"""A model on the rows of a split of the run's dataset, all ranks that share it together."""

from collections.abc import Iterator, Sequence
from functools import partial

from csrec_dist.data.batches import Batch, blank_batch, to_batch
from csrec_dist.data.order import owned_shards
from csrec_dist.distributed.catalog import in_step
from csrec_dist.distributed.layout import Layout
from csrec_dist.evaluation import evaluate
from csrec_dist.models import SequentialModel
from csrec_dist.process_state import matmul_precision
from csrec_dist.runs.stages.active import ActiveRun

EVALUATION_ROWS = 256


def evaluate_model(run: ActiveRun, model: SequentialModel, split: str, layout: Layout) -> dict[str, float]:
    """Metrics of a model on all rows of a split, each rank of the layout reading its own shards."""
    shards, options = owned_shards(run.dataset.num_shards, layout.group.rank, layout.group.size), run.config.evaluation
    with matmul_precision(options.matmul_precision):
        return evaluate(
            model,
            evaluation_batches(run, split, shards, layout),
            top_n=options.cut_offs,
            exclude_seen=options.exclude_seen,
            reduce=partial(layout.group.sum_after_work, name="the sums of an evaluation"),
        )


def evaluation_batches(run: ActiveRun, split: str, shards: Sequence[int], layout: Layout) -> Iterator[Batch]:
    """The rows of some shards on the device; where ranks share an item table, equally many batches on each of them."""
    device, window = run.runtime.device, run.dataset.window
    rows = run.dataset.stream(split, batch_size=EVALUATION_ROWS, shards=shards)
    batches = run.runtime.watch.reading(map(to_batch, rows))
    batches = in_step(batches, layout.catalog_slice(run.dataset.num_items), device, lambda: blank_batch(window))
    return (batch.to(device) for batch in batches)
