"""Floating-point operations by count: an encoder's by torch's counter on one small batch, a loss's by its formula.

A product of [a, b] and [b, c] has 2·a·b·c. Operations on single numbers, dropout, and Adam's update are not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from csrec_dist import models
from csrec_dist.data.batches import Batch, question, to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.labels import read_index
from csrec_dist.models import ModelConfig, config_class
from csrec_dist.models.pretrained import read_description
from csrec_dist.runs.stages.active import ActiveRun
from csrec_dist.runs.stages.evaluate import trained_models

COUNTED_ROWS = 64
COUNTED_ITEMS = 64


@dataclass(frozen=True)
class EncoderFlops:
    """Of a model without its products with the item table: for each state that is trained, forward and backward; for
    each example that is labelled, and for each history that is ranked for, forward.
    """

    training: float
    labelling: float
    ranking: float


def loss_flops(num_items: int, width: int, label_width: int = 0, noise_rank: int = 0) -> float:
    """Of a loss for each example, forward and backward: V (6 d + 2 D + 6 r).

    Logits, and both their gradients, are products with the item table [V, d]; factored labels are one more with tables
    [V, D] that get no gradient; the noise matrix of CSRec-T has three with [V, r]. The search for its maxima, now and
    then, is not counted.
    """
    return num_items * (6 * width + 2 * label_width + 6 * noise_rank)


def encoder_flops(config: ModelConfig, train: Batch, valid: Batch, window: int) -> EncoderFlops:
    """Of a model with these rows, whose items may be any of 1…COUNTED_ITEMS: the catalog plays no part."""
    model = models.build(config, COUNTED_ITEMS, window - 1, seed=0)
    inputs = model.inputs(train, 0)

    def forward_and_backward() -> None:
        outputs = model.training_states(inputs)
        sum((view.sum() for view in outputs.views or ()), outputs.states.sum()).backward()

    training = _count(forward_and_backward)
    model.eval()
    with torch.no_grad():
        labelling = _count(lambda: model.encode(train.histories))
        ranking = _count(lambda: model.encode_last(question(valid).histories))
    return EncoderFlops(training / inputs.num_states, labelling / train.num_examples, ranking / len(valid.rows))


def _count(work: Callable[[], object]) -> int:
    # The counter knows the products that attention is made of, but not the fused kernel of a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


def first_rows(dataset: Dataset, split: str) -> Batch:
    """The first rows of a split, their items folded into a small catalog."""
    batch = to_batch(next(iter(dataset.stream(split, batch_size=COUNTED_ROWS))))
    items = torch.where(batch.items > 0, (batch.items - 1) % COUNTED_ITEMS + 1, 0)
    return replace(batch, items=items)


@dataclass(frozen=True)
class RunFlops:
    """Of a run's stages, for each example."""

    training: dict[str, float]
    """By the name of a training, as its log calls it."""
    labelling: float
    evaluation: list[tuple[str, float]]
    """Of each pass over a split in turn: the split, and what a row takes."""


def run_flops(run: ActiveRun) -> RunFlops:
    """Of a run whose models are all trained."""
    dataset = run.dataset
    train, valid = first_rows(dataset, "train"), first_rows(dataset, "valid")
    configs: dict[str, ModelConfig] = {}
    for name, folder in trained_models(run).items():
        description = read_description(folder)
        configs[name] = description.parse_config(config_class(description.model_type), folder)
    distinct = {str(config): config for config in configs.values()}  # equal models are counted once
    counts = {key: encoder_flops(config, train, valid, dataset.window) for key, config in distinct.items()}
    encoders = {name: counts[str(config)] for name, config in configs.items()}
    widths = {name: config.width for name, config in configs.items()}
    ranking = {name: encoders[name].ranking + 2 * dataset.num_items * widths[name] for name in configs}
    return RunFlops(
        _training(run, encoders, widths),
        _labelling(run, encoders, widths),
        [(split, ranking[name]) for name, split in passes(run)],
    )


def passes(run: ActiveRun) -> list[tuple[str, str]]:
    """What stage evaluate ranks: a model and a split for each pass.

    Members pass test again as the teacher ensemble, and once more where they are compared with each other.
    """
    config = run.config
    ranked = [(name, split) for name in trained_models(run) for split in ("valid", "test")]
    if len(config.labelling_names) > 1:
        ranked += [(name, "test") for name in config.labelling_names]
    if config.evaluation.diversity and len(config.member_names) > 1:
        ranked += [(name, "test") for name in config.member_names]
    return ranked


def _training(run: ActiveRun, encoders: dict[str, EncoderFlops], widths: dict[str, int]) -> dict[str, float]:
    """Of each training by the name of its log."""
    config, num_items, width = run.config, run.dataset.num_items, widths["student"]
    distillation = loss_flops(num_items, width, _label_width(run, widths))
    flops = {"distill": encoders["student"].training + distillation}
    if config.baseline:
        flops["baseline"] = encoders["base"].training + loss_flops(num_items, width)
    for member in () if config.teachers.pretrained else config.module.members:
        noise = config.teachers.noise_rank if member.regularised_by and config.teachers.expectation else 0
        regulariser = widths[member.regularised_by] if member.regularised_by else 0
        loss = loss_flops(num_items, widths[member.name], regulariser, noise)
        flops[f"teach/{member.name}"] = encoders[member.name].training + loss
    return flops


def _label_width(run: ActiveRun, widths: dict[str, int]) -> int:
    """Columns of the tables that the loss multiplies to have the labels' logits; stored logits need no product."""
    is_read = run.config.num_members > 0 and run.config.training.beta > 0
    if not is_read or read_index(run.folder / "labels").form != "factored":
        return 0
    return sum(widths[name] for name in run.config.labelling_names)


def _labelling(run: ActiveRun, encoders: dict[str, EncoderFlops], widths: dict[str, int]) -> float:
    names = run.config.labelling_names
    if not names:
        return 0.0
    is_factored = read_index(run.folder / "labels").form == "factored"
    products = 0 if is_factored else 2 * run.dataset.num_items * sum(widths[name] for name in names)
    return sum(encoders[name].labelling for name in names) + products
