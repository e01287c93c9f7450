"""The `training` section of the config: the loop, its checkpoints, and the student's loss."""

from typing import Literal

from pydantic import Field

from csrec_dist.options import Options

Precision = Literal["fp32", "bf16"]
Direction = Literal["reverse", "forward"]
"""Of the divergence between soft labels and student: the names in `losses.DIVERGENCES`."""


class LoopOptions(Options):
    """How long and how fast to train; shared by teachers and students."""

    batch_size: int = Field(256, ge=1, strict=True, description="Windows in a global batch, over all processes.")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Adam's peak learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="Learning-rate schedule after warm-up; linear and cosine reach 0 at the last step of max_epochs "
        "(or max_steps).",
    )
    warmup_steps: int = Field(
        0, ge=0, strict=True, description="Steps over which the learning rate rises linearly to its peak."
    )
    max_epochs: int = Field(100, ge=1, strict=True, description="Largest number of passes over the training rows.")
    patience: int = Field(
        10, ge=1, strict=True, description="Epochs without a better validation NDCG@10 before training stops early."
    )
    max_steps: int | None = Field(
        None, ge=1, strict=True, description="Largest number of steps, for trials; null: no limit."
    )
    accumulate: int = Field(
        1,
        ge=1,
        strict=True,
        description="Micro-batches into which a process splits its share of a batch, to save memory.",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="Gradients with a larger norm are scaled down to it; null: no clipping."
    )
    precision: Precision = Field(
        "fp32", description="Precision of the model's computation in training; weights and losses stay fp32."
    )
    log_steps: int = Field(50, ge=1, strict=True, description="Steps between two points of the loss curve.")


class CheckpointOptions(Options):
    """When a training writes checkpoints, besides the end of each epoch; these keys decide no result."""

    checkpoint_steps: int | None = Field(
        None, ge=1, strict=True, description="Steps between two checkpoints within an epoch; null: only by minutes."
    )
    checkpoint_minutes: float = Field(10, gt=0, le=1e6, description="Minutes between two checkpoints within an epoch.")
    keep_checkpoints: int = Field(2, ge=1, strict=True, description="Number of checkpoints to keep during a training.")


class TrainingOptions(CheckpointOptions, LoopOptions):
    """`training`: the loop, its checkpoints, and the student's loss of Eq. 20."""

    temperature: float = Field(3.0, gt=0, description="T of Eq. 19, applied to the teacher only.")
    beta: float = Field(0.5, ge=0, le=1, description="β of Eq. 20: weight of the soft labels in the loss.")
    kl: Direction = Field("reverse", description="divergence of Eq. 20: KL(P_f ‖ r), or KL(r ‖ P_f)")
