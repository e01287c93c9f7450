"""Defaults of a training by the size of its log, for options that the config leaves open. Imports no torch.

The figures were chosen on validation NDCG@10 of Base with SASRec: "Defaults by the size of a log" in benchmarks/LOG.md.
"""

from math import ceil, log2, sqrt

from csrec_dist.data.dataset import Split
from csrec_dist.training.options import ResolvedTraining, TrainingOptions

STEPS_OF_EPOCH, FEWEST_STEPS = 150, 32
"""An epoch has about STEPS_OF_EPOCH steps, if their batches are within EXAMPLES, and at least FEWEST_STEPS."""
EXAMPLES = (256, 2048)
"""Examples of a batch: 256 were best for the smallest log that was tried. For the largest, 1,024 and 2,048 were equally
good, and 4,096 were behind by about two standard errors."""
FEWEST_WINDOWS = 2
"""Windows of a batch: models that contrast windows need at least two."""
LEARNING_RATE, AT_EXAMPLES, HIGHEST_RATE = 1e-3, 512, 4e-3
"""Of batches of up to AT_EXAMPLES examples; above, the learning rate grows with the square root of their number."""
WARMUP_STEPS = 100
"""Warm-up steps of the learning rate, or the steps of the first epoch if these are fewer."""
STEPS, EPOCHS = 20_000, (10, 200)
"""A training has at most about STEPS steps, within these numbers of epochs."""
PATIENT_STEPS, PATIENCE = 1_000, (3, 20)
"""Early stopping waits about PATIENT_STEPS steps, within these numbers of epochs."""


def resolve(options: TrainingOptions, train: Split) -> ResolvedTraining:
    """The options, with everything that is None chosen by the numbers of training windows and examples.

    The choice depends on the training split alone, so that runs on one dataset share their teachers.

    >>> small = Split("train", shard_rows=(600, 600), shard_examples=(48_000, 48_000))
    >>> resolve(TrainingOptions(), small).batch_size
    8
    >>> resolve(TrainingOptions(batch_size=64), small).learning_rate
    0.0032
    """
    windows, of_window = train.num_rows, train.num_examples / train.num_rows
    of_batch = min(_within(train.num_examples / STEPS_OF_EPOCH, EXAMPLES) / of_window, windows / FEWEST_STEPS)
    batch_size = options.batch_size or max(FEWEST_WINDOWS, 2 ** round(log2(of_batch)))
    steps = ceil(windows / batch_size)
    rate = LEARNING_RATE * max(1, sqrt(batch_size * of_window / AT_EXAMPLES))
    chosen = {
        "batch_size": batch_size,
        "learning_rate": min(float(f"{rate:.1e}"), HIGHEST_RATE),
        "warmup_steps": min(WARMUP_STEPS, steps),
        "max_epochs": _within(STEPS / steps, EPOCHS),
        "patience": _within(PATIENT_STEPS / steps, PATIENCE),
    }
    return ResolvedTraining.model_validate(chosen | options.model_dump(exclude_none=True))


def _within(value: float, limits: tuple[int, int]) -> int:
    """The value rounded up to a whole number, or the limit that it exceeds."""
    low, high = limits
    return min(max(ceil(value), low), high)
