"""The `evaluation` section of the config: what is computed for the models, and what readers call it."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from csrec_dist.options import RANKS, TRAININGS, MatmulPrecision, Options, decides

EVALUATION, COMPARED = decides("evaluate"), decides("evaluate", through=RANKS)
NUM_BINS = 15
"""Bins of confidence of the calibration."""
GROUPINGS = {
    "rating": "rating of the target",
    "popularity": "popularity of the target",
    "popularity_decile": "decile of the target's popularity",
    "history_length": "items in the history",
    "repeat": "whether the history contains the target",
    "leak": "whether the target is a training target of the same user",
}


def _several(value: Any) -> Any:
    """One cut-off is a list of one."""
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


class EvaluationOptions(Options):
    """`evaluation`: full-catalog ranking."""

    top_n: Annotated[list[Annotated[int, Field(ge=1, strict=True)]], BeforeValidator(_several), EVALUATION] = Field(
        [5, 10, 20], min_length=1, description="Cut-offs n of Recall@n, NDCG@n and MRR@n."
    )
    exclude_seen: Annotated[bool, decides(*TRAININGS, "evaluate"), COMPARED] = Field(
        False, description="Exclude the items of the history from rankings."
    )
    matmul_precision: Annotated[MatmulPrecision, decides(*TRAININGS, "evaluate"), COMPARED] = Field(
        "highest",
        description="Of the products that rank the items, on a GPU: as exact as fp32, or TF32 (high and medium), "
        "with which ranks may differ.",
    )
    min_rating: Annotated[float, EVALUATION, COMPARED] = Field(
        4.0,
        description="δ: Recall⁺ and NDCG⁺ cover test targets rated at least δ, Recall⁻ and NDCG⁻ those rated below.",
    )
    lists: Annotated[bool, EVALUATION] = Field(
        True, description="Compute coverage, Gini index and average popularity of the top-n lists on test."
    )
    calibration: Annotated[bool, EVALUATION] = Field(
        True, description="Compute the expected calibration error of the models' probabilities on test."
    )
    diversity: Annotated[bool, EVALUATION] = Field(
        True, description="Compute how much the teachers' lists and probabilities differ on test."
    )

    @property
    def cut_offs(self) -> list[int]:
        """The n of all metrics: those asked for, and 10, which early stopping and the tables look at."""
        return sorted({*self.top_n, 10})


SIGNS = str.maketrans("+-", "⁺⁻")


def is_adverse(name: str) -> bool:
    """Whether a metric is of targets rated low, so that less is better."""
    return "-@" in name


def metric_title(name: str) -> str:
    """A metric's display name: Recall@10, NDCG@10, MRR; filtered Recall⁺@10, adverse Recall⁻@10."""
    return (name.capitalize() if name.startswith("recall") else name.upper()).translate(SIGNS)
