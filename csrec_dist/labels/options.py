"""The `labels` section of the config: how members are combined, and how soft labels are stored."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field

from csrec_dist.options import NOTHING, Options, decides

Combine = Literal["logit_mean", "weighted", "prob_mean"]
"""softmax(Σ e_k / (m T)), softmax(Σ w_k e_k / T), or Σ w_k softmax(e_k / T) with w_k = 1/m unless given."""

COMBINES: tuple[Combine, ...] = get_args(Combine)
WEIGHT_TOLERANCE = 1e-6
Form = Literal["factored", "dense", "topk"]
FORMS: tuple[Form, ...] = get_args(Form)
DType = Literal["float32", "float16", "bfloat16"]
DTYPES: tuple[DType, ...] = get_args(DType)
LABELLING = decides("label")


class LabelOptions(Options):
    """`labels`: how soft labels are combined and stored."""

    form: Annotated[Literal["factored", "dense", "topk", "auto"], LABELLING] = Field(
        "factored",
        description="What the cache stores: states and item tables, whole rows of logits, or the K largest logits; "
        "auto: the smallest within tolerance.",
    )
    combine: Annotated[Combine, LABELLING] = Field(
        "logit_mean",
        description="How members are combined: mean logits (Alg. 1, line 7), weighted logits, or mean probabilities.",
    )
    weights: Annotated[list[float] | Literal["fitted"] | None, LABELLING] = Field(
        None,
        description="Weights of the members for weighted and prob_mean; fitted: fit them on validation (weighted "
        "only).",
    )
    keep: Annotated[int, decides("label", when=lambda config: config.labels.form in ("topk", "auto"))] = Field(
        256, ge=1, strict=True, description="K: number of logits stored per example in form topk."
    )
    dtype: Annotated[Literal["float32", "float16", "bfloat16", "auto"], LABELLING] = Field(
        "float16", description="Number type of what is stored per example; auto: the smallest within tolerance."
    )
    tolerance: Annotated[float, decides("label", when=lambda config: config.labels.is_auto)] = Field(
        1e-3,
        ge=0,
        description="Largest mean KL (nats) a smaller format may add when form or dtype is auto, at the student's T "
        "and kl.",
    )
    copy_to: Annotated[str | None, NOTHING] = Field(
        None,
        min_length=1,
        description="Folder on each node's own disk; before distillation each node copies the labels it reads there.",
    )
    device_mib: Annotated[int, NOTHING] = Field(
        2048,
        ge=0,
        strict=True,
        description="A GPU keeps the labels that its process reads, where they take at most so many MiB; 0: never.",
    )

    @property
    def is_auto(self) -> bool:
        """Whether form or number type is to be chosen."""
        return "auto" in (self.form, self.dtype)

    @property
    def exact(self) -> tuple[Form, DType] | None:
        """Form and number type where they lose nothing, all that the members say being stored in fp32; else None."""
        if self.form == "auto" or self.form == "topk" or self.dtype != "float32":
            return None
        return self.form, self.dtype


def combining_problem(
    combine: Combine, weights: Sequence[float] | Literal["fitted"] | None, num_members: int, form: str = "factored"
) -> str | None:
    """Why members cannot be combined like this, in a sentence for the user; None when they can."""
    if combine == "prob_mean" and form != "factored":
        return (
            f"combine prob_mean does not fit form {form}: a mean of probabilities depends on the temperature and has "
            f"no logits, which {form} labels are. Use form factored, or combine logit_mean or weighted."
        )
    if combine == "logit_mean" and weights is not None:
        return "combine logit_mean takes no weights; use combine weighted, or leave the weights out."
    if combine == "weighted" and weights is None:
        return f"combine weighted needs weights, one for each of the {num_members} members, that sum to 1."
    if weights is None or weights == "fitted":
        return None
    sound = len(weights) == num_members and all(math.isfinite(w) and w >= 0 for w in weights)
    if sound and abs(sum(weights) - 1) <= WEIGHT_TOLERANCE:
        return None
    return (
        f"weights {list(weights)} do not fit {num_members} members: give one for each, none below 0, that sum to 1 "
        f"(to {WEIGHT_TOLERANCE:g})."
    )
