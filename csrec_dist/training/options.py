"""The `training` section of the config: the loop, its checkpoints, and the student's loss."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from csrec_dist.options import INITIAL, NOTHING, TRAININGS, MatmulPrecision, Options, decides

Precision = Literal["fp32", "bf16"]


def _switch(value: Any) -> Any:
    """YAML reads a bare on or off as a truth value."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


CudaGraph = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]
Direction = Literal["reverse", "forward"]
"""Of the divergence between soft labels and student: the names in `losses.DIVERGENCES`."""


def _is_scheduled(config: Any) -> bool:
    """Whether every learning rate depends on the last step of max_epochs."""
    return config.training.schedule != "constant"


def _is_read_in_labelling(config: Any) -> bool:
    """Whether T decides labels: those of topk hold the log-sum-exp at T, and auto measures errors at T."""
    return config.labels.is_auto or config.labels.form == "topk"


TRAINING = decides(*TRAININGS)
LIMIT = decides(*TRAININGS, can_rise=True)
DISTILLATION = decides("distill", when=lambda config: config.method != "base")


class LoopOptions(Options):
    """How long and how fast to train; shared by teachers and students.

    What is None follows from the size of the log: see `resolve` in training/defaults.py.
    """

    batch_size: Annotated[int | None, TRAINING] = Field(
        None,
        ge=1,
        strict=True,
        description="Windows in a global batch, over all processes; null: by the size of the log.",
    )
    learning_rate: Annotated[float | None, TRAINING] = Field(
        None, gt=0, le=10, description="Adam's peak learning rate; null: by the size of the log."
    )
    schedule: Annotated[Literal["constant", "linear", "cosine"], TRAINING] = Field(
        "constant",
        description="Learning-rate schedule after warm-up; linear and cosine would reach 0 one step after the last of "
        "max_epochs (or max_steps).",
    )
    warmup_steps: Annotated[int | None, TRAINING] = Field(
        None,
        ge=0,
        strict=True,
        description="Steps over which the learning rate rises linearly to its peak; null: by the size of the log.",
    )
    max_epochs: Annotated[int | None, LIMIT, decides(*TRAININGS, when=_is_scheduled)] = Field(
        None,
        ge=1,
        strict=True,
        description="Largest number of passes over the training rows; null: by the size of the log.",
    )
    patience: Annotated[int | None, LIMIT] = Field(
        None,
        ge=1,
        strict=True,
        description="Epochs without a better validation NDCG@10 before training stops early; null: by the size of the "
        "log.",
    )
    max_steps: Annotated[int | None, TRAINING] = Field(
        None, ge=1, strict=True, description="Largest number of steps, for trials; null: no limit."
    )
    accumulate: Annotated[int, TRAINING] = Field(
        1,
        ge=1,
        strict=True,
        description="Micro-batches into which a process splits its share of a batch, to save memory.",
    )
    clip_norm: Annotated[float | None, TRAINING] = Field(
        None, gt=0, description="Gradients with a larger norm are scaled down to it; null: no clipping."
    )
    precision: Annotated[Precision, TRAINING] = Field(
        "fp32", description="Precision of the model's computation in training; weights and losses stay fp32."
    )
    matmul_precision: Annotated[MatmulPrecision, TRAINING] = Field(
        "highest",
        description="Of the loss's products with the item tables: as exact as fp32, TF32 (high, on a GPU), or bf16 "
        "with fp32 sums (medium, on CPUs with AVX512-BF16 and where a GPU has kernels for the loss, else TF32); all "
        "else is fp32.",
    )
    cuda_graph: Annotated[CudaGraph, NOTHING] = Field(
        "auto",
        description="Whether a GPU repeats the kernels of a step from a CUDA graph, with the same result; auto: with "
        "numbers of processes for which a measurement is recorded.",
    )
    log_steps: Annotated[int, NOTHING] = Field(
        50, ge=1, strict=True, description="Steps between two points of the loss curve."
    )


class CheckpointOptions(Options):
    """When a training writes checkpoints, besides the end of each epoch; these keys decide no result."""

    checkpoint_steps: Annotated[int | None, NOTHING] = Field(
        None, ge=1, strict=True, description="Steps between two checkpoints within an epoch; null: only by minutes."
    )
    checkpoint_minutes: Annotated[float, NOTHING] = Field(
        10, gt=0, le=1e6, description="Minutes between two checkpoints within an epoch."
    )
    keep_checkpoints: Annotated[int, NOTHING] = Field(
        2, ge=1, strict=True, description="Number of checkpoints to keep during a training."
    )


class TrainingOptions(CheckpointOptions, LoopOptions):
    """`training`: the loop, its checkpoints, and the student's loss of Eq. 20."""

    temperature: Annotated[float, DISTILLATION, decides("label", when=_is_read_in_labelling)] = Field(
        3.0, gt=0, description="T of Eq. 19, applied to the teacher only."
    )
    beta: Annotated[float, DISTILLATION] = Field(
        0.5, ge=0, le=1, description="β of Eq. 20: weight of the soft labels in the loss."
    )
    init_from: Annotated[str | None, decides("distill", "baseline", through=INITIAL)] = Field(
        None,
        min_length=1,
        description="Folder of a finished run, or of a model, from which the student's training starts: items are "
        "matched by raw id, new ones are drawn as in a new model; null: all weights are drawn.",
    )
    kl: Annotated[Direction, DISTILLATION, decides("label", when=lambda config: config.labels.is_auto)] = Field(
        "reverse", description="Direction of the divergence of Eq. 20: KL(P_f ‖ r), or KL(r ‖ P_f)."
    )

    @property
    def is_resolved(self) -> bool:
        """Whether nothing is left to the size of the log."""
        return None not in (self.batch_size, self.learning_rate, self.warmup_steps, self.max_epochs, self.patience)


class ResolvedTraining(TrainingOptions):
    """`training` when the dataset is known: nothing is left to its size."""

    batch_size: int
    learning_rate: float
    warmup_steps: int
    max_epochs: int
    patience: int
