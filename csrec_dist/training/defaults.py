"""What a training takes from the size of its log, where the config leaves it open. Imports no torch."""

from math import ceil, log2

from csrec_dist.data.dataset import Split
from csrec_dist.training.options import ResolvedTraining, TrainingOptions

# Chosen on validation NDCG@10 of Base with SASRec over four logs: see "Defaults by the size of a log" in
# benchmarks/LOG.md.
EXAMPLES = 1024
"""Of a batch: smaller ones make steps that a processor does not fill, and larger ones too few steps of a small log."""
FEWEST_STEPS = 32
"""Of an epoch: a small log has smaller batches, down to one window."""
LEARNING_RATE = 1e-3
WARMUP_STEPS = 100
"""Of the learning rate, or the steps of the first epoch if these are fewer."""
STEPS, MOST_EPOCHS, FEWEST_EPOCHS = 20_000, 200, 10
"""A training has about so many steps, unless these are more or fewer passes than such."""
PATIENT_STEPS, MOST_PATIENCE, LEAST_PATIENCE = 1_000, 10, 3
"""Early stopping waits about so many steps, within these numbers of epochs."""


def resolve(options: TrainingOptions, train: Split) -> ResolvedTraining:
    """The options with all that is None chosen by the numbers of training windows and examples.

    It depends on the training split alone, so that runs on one dataset share their teachers, whatever trains there.

    >>> small = Split("train", shard_rows=(600, 600), shard_examples=(48_000, 48_000))
    >>> resolve(TrainingOptions(), small).batch_size
    16
    >>> resolve(TrainingOptions(batch_size=64), small).batch_size
    64
    """
    windows, examples = train.num_rows, train.num_examples
    of_batch = min(EXAMPLES * windows / examples, windows / FEWEST_STEPS)
    batch_size = options.batch_size or max(1, 2 ** round(log2(of_batch)))
    steps = ceil(windows / batch_size)
    chosen = {
        "batch_size": batch_size,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": min(WARMUP_STEPS, steps),
        "max_epochs": min(max(ceil(STEPS / steps), FEWEST_EPOCHS), MOST_EPOCHS),
        "patience": min(max(ceil(PATIENT_STEPS / steps), LEAST_PATIENCE), MOST_PATIENCE),
    }
    return ResolvedTraining.model_validate(chosen | options.model_dump(exclude_none=True))
