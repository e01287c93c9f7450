"""The `training` section of the config: the loop, its checkpoints, and the student's loss."""

from typing import Literal

from pydantic import Field

from csrec_dist.options import Options

Precision = Literal["fp32", "bf16"]
Direction = Literal["reverse", "forward"]
"""Of the divergence between soft labels and student: the names in `losses.DIVERGENCES`."""


class LoopOptions(Options):
    """How long and how fast to train; shared by teachers and students."""

    batch_size: int = Field(256, ge=1, strict=True, description="windows in a global batch, over all processes")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Adam's learning rate, at its largest")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="how the learning rate falls from there to 0 at the last step of max_epochs (or max_steps)",
    )
    warmup_steps: int = Field(
        0, ge=0, strict=True, description="steps over which the learning rate rises to it at first"
    )
    max_epochs: int = Field(100, ge=1, strict=True, description="passes over the training rows at most")
    patience: int = Field(
        10, ge=1, strict=True, description="epochs without a better validation NDCG@10 before stopping"
    )
    max_steps: int | None = Field(None, ge=1, strict=True, description="steps at most, for trials; null: no limit")
    accumulate: int = Field(
        1, ge=1, strict=True, description="micro-batches that a process cuts its share of a batch into, to save memory"
    )
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient of a step; null: no limit")
    precision: Precision = Field(
        "fp32", description="number format of the model's own arithmetic in training; weights and losses are fp32"
    )
    log_steps: int = Field(50, ge=1, strict=True, description="steps between two points of the loss curve")


class CheckpointOptions(Options):
    """When a training writes down where it stands; this decides no result. The end of an epoch always does."""

    checkpoint_steps: int | None = Field(
        None, ge=1, strict=True, description="steps between two checkpoints within an epoch; null: by minutes alone"
    )
    checkpoint_minutes: float = Field(10, gt=0, le=1e6, description="minutes after which a checkpoint is due")
    keep_checkpoints: int = Field(2, ge=1, strict=True, description="checkpoints of a training that are kept")


class TrainingOptions(CheckpointOptions, LoopOptions):
    """`training`: the loop, its checkpoints, and the student's loss of Eq. 20."""

    temperature: float = Field(3.0, gt=0, description="T of Eq. 19, on the teacher only")
    beta: float = Field(0.5, ge=0, le=1, description="β of Eq. 20: share of the soft labels in the loss")
    kl: Direction = Field("reverse", description="divergence of Eq. 20: KL(P_f ‖ r), or KL(r ‖ P_f)")
