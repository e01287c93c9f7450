"""The `dataset` section of the config: which log, and how it becomes windows and splits."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from csrec_dist.data.columns import Columns
from csrec_dist.data.noise import NoiseKind
from csrec_dist.data.readers import READERS
from csrec_dist.data.wording import did_you_mean, listed


class NoiseOptions(BaseModel):
    """Training interactions that are replaced, to see how much noise a student bears."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rate: float = Field(
        default=0.0, ge=0, le=1, strict=True, description="Share of the training interactions replaced by another item."
    )
    kind: NoiseKind = Field(
        default="uniform",
        description="Law of the other item: all items alike; by its training interactions; by its place k, with "
        "weight 1/k, in the list of the 100 most popular items.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, strict=True, description="Seed of the noise.")

    @property
    def is_none(self) -> bool:
        """Whether nothing is replaced."""
        return self.rate == 0


class DatasetOptions(BaseModel):
    """How a raw log is turned into a prepared dataset (or which prepared dataset is taken)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str | None = Field(
        default=None, description="Raw log: a file, a folder with one log in it, or the name of a fetched data set."
    )
    path: str | None = Field(
        default=None, description="A dataset folder that is already prepared, instead of `source`."
    )
    format: str | None = Field(default=None, description="Reader of the log; default: told from the file's beginning.")
    columns: Columns = Field(
        default=Columns(), description="Names of the log's columns; default: guessed from the usual names."
    )
    min_interactions: int = Field(
        default=5, ge=1, strict=True, description="Users and items with fewer interactions are dropped (k-core)."
    )
    k_core: Literal["iterated", "once"] = Field(
        default="iterated", description="Drop until nothing changes, or users and items by their raw counts only."
    )
    duplicates: Literal["keep", "first", "last"] = Field(
        default="keep",
        description="Same user and item several times: keep all, or only the first or last in time.",
    )
    window: int = Field(default=20, ge=3, strict=True, description="Longest window, in items, target included.")
    windows: Literal["disjoint", "paper", "last"] = Field(
        default="disjoint",
        description="Cut sequences from the end without overlap; as the paper did, with a head window that "
        "overlaps (and leaks); or take each user's last window only.",
    )
    split: Literal["leave_one_out", "temporal"] = Field(
        default="leave_one_out",
        description="Test and validation: the last two items of each window, or what follows two cuts in global time.",
    )
    temporal_shares: tuple[float, float, float] = Field(
        default=(0.8, 0.1, 0.1),
        description="Shares of interactions before, between and after the two cuts of the temporal split.",
    )
    num_lanes: int = Field(
        default=64, ge=1, strict=True, description="Number of files each split is dealt to: the most ranks."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, strict=True, description="Seed of the dealing of rows to lanes.")
    noise: NoiseOptions = Field(
        default=NoiseOptions(),
        exclude_if=lambda noise: noise.is_none,  # so that a dataset without noise keeps its fingerprint
        description="Noise in the training interactions.",
    )

    @field_validator("noise", mode="before")
    @classmethod
    def _null_is_no_noise(cls, noise: Any) -> Any:
        return {} if noise is None else noise

    @field_validator("format")
    @classmethod
    def _format_is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in READERS:
            raise ValueError(f"no reader '{name}'{did_you_mean(name, READERS)}; there are {listed(READERS)}")
        return name

    @field_validator("temporal_shares")
    @classmethod
    def _shares_are_shares(cls, shares: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"three positive shares that add up to 1 are needed, not {shares}")
        return shares

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.source is None) == (self.path is None):
            raise ValueError("give either source (a raw log) or path (a prepared dataset), and not both")
        if self.path is not None and not self.noise.is_none:
            raise ValueError("noise is put in when a raw log is prepared: give source instead of path")
        return self
