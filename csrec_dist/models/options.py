"""The options of each model, and the models' names. A line of `CONFIGS` is all that makes a model known."""

from importlib.metadata import entry_points
from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from csrec_dist.errors import UserError
from csrec_dist.options import Options

LARGEST_SIZE, MOST_LAYERS = 1 << 16, 1000
"""Above what any such model has: a config.json from elsewhere does not make the process build for hours."""


class ModelConfig(Options):
    """The keys all models share; `name` is the model's file name in this folder."""

    FREE: ClassVar[frozenset[str]] = frozenset({"dropout", "attention_dropout", "state_dropout"})
    """Keys that another training may choose anew: what the weights mean does not depend on them."""

    name: str
    width: int = Field(64, ge=1, le=LARGEST_SIZE, strict=True, description="Width d of states and item table.")
    dropout: float = Field(ge=0, lt=1, description="Dropout, applied where the model says.")


class TransformerConfig(ModelConfig):
    """Sizes of a transformer; attention weights drop out as everything else does unless said otherwise."""

    attention_dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout of the attention weights; null: same as dropout."
    )
    num_layers: int = Field(2, ge=1, le=MOST_LAYERS, strict=True, description="Number of transformer layers.")
    num_heads: int = Field(2, ge=1, le=LARGEST_SIZE, strict=True, description="Attention heads; must divide the width.")
    inner_width: int = Field(256, ge=1, le=LARGEST_SIZE, strict=True, description="Inner width of the feed-forward.")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


class SASRecConfig(TransformerConfig):
    """Sizes of a SASRec."""

    name: Literal["sasrec"] = "sasrec"
    dropout: float = Field(0.3, ge=0, lt=1, description="Dropout of inputs, attention output and feed-forward.")


class BERT4RecConfig(TransformerConfig):
    """Sizes of a BERT4Rec, and what it masks in training."""

    FREE = ModelConfig.FREE | {"mask_ratio", "prefixes"}

    name: Literal["bert4rec"] = "bert4rec"
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout of inputs, attention output and feed-forward.")
    positions_from: Literal["end", "start"] = Field(
        "end", description="Positions count backwards from the mask, or forwards from the oldest item (RecBole)."
    )
    mask_ratio: float = Field(0.2, ge=0, lt=1, description="Share of a window's items that are masked at random.")
    prefixes: int = Field(4, ge=1, strict=True, description="Prefixes of each window, masked at their end, per step.")


class CL4SRecConfig(SASRecConfig):
    """Sizes as SASRec's; what the copies keep, hide and reorder; the weight of their loss."""

    FREE = ModelConfig.FREE | {"crop", "mask", "reorder", "contrast_weight", "contrast_temperature"}

    name: Literal["cl4srec"] = "cl4srec"  # type: ignore[assignment]
    crop: float = Field(0.6, gt=0, le=1, description="Share of a history that a cropped copy keeps.")
    mask: float = Field(0.3, ge=0, le=1, description="Share of a history that a masked copy hides.")
    reorder: float = Field(0.6, ge=0, le=1, description="Share of a history that a reordered copy shuffles.")
    contrast_weight: float = Field(0.1, ge=0, description="λ: weight of InfoNCE between copies, added to one-hot CE.")
    contrast_temperature: float = Field(1.0, gt=0, description="Temperature τ of InfoNCE.")


class DreamRecConfig(SASRecConfig):
    """Sizes of the condition's encoder as SASRec's; the diffusion as in the CSRec paper (Section 4.1.4)."""

    FREE = ModelConfig.FREE | {"condition_drop", "guidance", "sampling_steps"}

    name: Literal["dreamrec"] = "dreamrec"  # type: ignore[assignment]
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of the condition's encoder.")
    num_layers: int = Field(
        1, ge=1, le=MOST_LAYERS, strict=True, description="Transformer layers of the condition's encoder."
    )
    num_heads: int = Field(1, ge=1, le=LARGEST_SIZE, strict=True, description="Attention heads; must divide the width.")
    num_steps: int = Field(500, ge=1, strict=True, description="Number of diffusion steps T.")
    first_variance: float = Field(1e-4, gt=0, lt=1, description="Noise variance at step 1.")
    last_variance: float = Field(2e-2, gt=0, lt=1, description="Noise variance at step T; geometric in between.")
    condition_drop: float = Field(0.1, ge=0, lt=1, description="Share of examples trained without a condition.")
    guidance: float = Field(2.0, ge=0, description="w: the state is (1 + w) × conditional − w × unconditional.")
    sampling_steps: int | None = Field(
        10, ge=1, strict=True, description="Steps of the deterministic sampler; null: all T, with noise."
    )

    @model_validator(mode="after")
    def _samples_at_most_all_steps(self) -> Self:
        if self.sampling_steps is not None and self.sampling_steps > self.num_steps:
            raise ValueError(f"sampling_steps {self.sampling_steps} is more than num_steps {self.num_steps}")
        return self


class GRU4RecConfig(ModelConfig):
    """Sizes of a GRU4Rec; `hidden` is the width of the recurrent layers."""

    name: Literal["gru4rec"] = "gru4rec"
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout of the item vectors.")
    hidden: int = Field(
        64, ge=1, le=LARGEST_SIZE, strict=True, description="Width of the recurrent layers (RecBole: 128)."
    )
    num_layers: int = Field(2, ge=1, le=MOST_LAYERS, strict=True, description="Number of recurrent layers.")


class NARMConfig(ModelConfig):
    """Sizes of a NARM; `dropout` acts on item vectors, `state_dropout` before the output."""

    name: Literal["narm"] = "narm"
    dropout: float = Field(0.25, ge=0, lt=1, description="Dropout of the item vectors.")
    state_dropout: float = Field(0.5, ge=0, lt=1, description="Dropout of the state before the last layer.")
    hidden: int = Field(128, ge=1, le=LARGEST_SIZE, strict=True, description="Width of the recurrent layer.")
    num_layers: int = Field(1, ge=1, le=MOST_LAYERS, strict=True, description="Number of recurrent layers.")


class NextItNetConfig(ModelConfig):
    """Sizes of a NextItNet: `num_blocks` times the list `dilations`, one residual block each."""

    name: Literal["nextitnet"] = "nextitnet"
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the item vectors.")
    kernel: int = Field(3, ge=2, le=LARGEST_SIZE, strict=True, description="Positions that a convolution reads.")
    num_blocks: int = Field(5, ge=1, le=MOST_LAYERS, strict=True, description="Residual blocks for each dilation.")
    dilations: tuple[PositiveInt, ...] = Field((1,), min_length=1, description="Dilations, in order.")


class SRGNNConfig(ModelConfig):
    """Sizes of an SR-GNN; `dropout` acts before the output."""

    name: Literal["srgnn"] = "srgnn"
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the state before the last layer.")
    num_steps: int = Field(
        1, ge=1, strict=True, description="Steps of the gated graph network; one is by far the cheapest."
    )


CONFIGS: dict[str, type[ModelConfig]] = {
    "bert4rec": BERT4RecConfig,
    "cl4srec": CL4SRecConfig,
    "dreamrec": DreamRecConfig,
    "gru4rec": GRU4RecConfig,
    "narm": NARMConfig,
    "nextitnet": NextItNetConfig,
    "sasrec": SASRecConfig,
    "srgnn": SRGNNConfig,
}
"""By the name of the model, which is that of its file in this folder; those of others join by `models.register`."""
OFFERED = "csrec_dist.models"
"""The group of entry points by which an installed package offers models: name = module that registers it."""


def is_model(name: str) -> bool:
    """Whether there is a model called `name`: one of ours, a registered one, or one of an installed package."""
    if name not in CONFIGS:
        for offered in entry_points(group=OFFERED, name=name):
            offered.load()
    return name in CONFIGS


def config_class(name: str) -> type[ModelConfig]:
    """The options of the model called `name`; UserError when there is none."""
    if not is_model(name):
        raise UserError(f"There is no model {name!r}; choose one of {', '.join(CONFIGS)}.")
    return CONFIGS[name]
