"""The `dataset` section of the config: the raw log, and how it becomes windows and splits."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from csrec_dist.data.columns import NONE, Columns, Layout
from csrec_dist.data.keep import Value, condition
from csrec_dist.data.noise import NoiseKind
from csrec_dist.data.readers import READERS
from csrec_dist.errors import did_you_mean, listed, quoted
from csrec_dist.options import NOTHING, Options


def _is_none(value: object) -> bool:
    """Whether a key is left out of fingerprints, so that a dataset without it keeps its own."""
    return value is None


class NoiseOptions(Options):
    """Training interactions to replace, to measure how much noise a student tolerates."""

    rate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        strict=True,
        description="Probability that a training interaction is replaced by another item.",
    )
    kind: NoiseKind = Field(
        default="uniform",
        description="Distribution of the replacing item: uniform; proportional to its training interactions; or 1/k "
        "for position k in the list of the 100 most popular items.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, strict=True, description="Seed of the noise.")

    @property
    def is_none(self) -> bool:
        """Whether nothing is replaced."""
        return self.rate == 0


class DatasetOptions(Options):
    """How to turn a raw log into a prepared dataset (or which prepared dataset to use).

    The log's checksum decides what is made of it, not its place.
    """

    source: Annotated[str | None, NOTHING] = Field(
        default=None,
        description="Raw log: a file, a folder or zip archive with a log or the parts of one, a pattern such as "
        "logs/*.csv, a file in an archive (ml-1m.zip/ml-1m/ratings.dat), or the name of a fetched data set. With "
        "split: given, the training interactions.",
    )
    valid_source: Annotated[str | None, NOTHING] = Field(
        default=None, exclude_if=_is_none, description="Validation interactions, as `source`; needs split: given."
    )
    test_source: Annotated[str | None, NOTHING] = Field(
        default=None, exclude_if=_is_none, description="Test interactions, as `source`; needs split: given."
    )
    path: Annotated[str | None, NOTHING] = Field(
        default=None, description="Folder of a dataset that is already prepared, instead of `source`."
    )
    format: str | None = Field(
        default=None, description="Reader of the log; default: detected from the beginning of the file."
    )
    header: bool | None = Field(
        default=None,
        strict=True,
        description="Delimited text: whether the first line names the columns; false: columns are given by position; "
        "default: detected from the line, with an error if it may be data.",
    )
    encoding: str | None = Field(
        default=None, description="Delimited text: the encoding, such as latin-1; default: UTF-8."
    )
    separator: str | None = Field(
        default=None,
        exclude_if=_is_none,
        description='Delimited text: what stands between fields, such as "\\t", " ", "#" or "::"; default: detected '
        "from the first line.",
    )
    keep: dict[str, Value | tuple[Value, ...]] = Field(
        default={},
        exclude_if=lambda keep: not keep,
        description="Rows that are read: a condition for some columns, by name (or role, or position without a "
        'header): a value, a list of which one is needed, or a comparison: {event: [transaction], rating: ">= 4"}.',
    )
    weights: dict[str, dict[str, Annotated[float, Field(ge=0)]]] = Field(
        default={},
        exclude_if=lambda weights: not weights,
        description="How much training on an interaction weighs, by the values of columns (named as in `keep`), such "
        "as {event: {view: 0.1, transaction: 1}}; other values weigh 1, and 0 leaves the interaction to histories.",
    )
    on_bad_rows: Literal["error", "skip"] = Field(
        default="error",
        exclude_if=lambda rule: rule == "error",
        description="What cannot be read (a line of another form, a time or rating that is none): an error that names "
        "the first; or left out, with counts in dataset.json and the first ten in bad_rows.jsonl.",
    )
    max_unpacked_gib: Annotated[float | None, NOTHING] = Field(
        default=None,
        gt=0,
        exclude_if=_is_none,
        description="Size to which compressed files of the log may expand in all; null: as far as their rows fit into "
        "the free memory and, of bz2, xz, zip and other encodings than UTF-8, into the temporary folder.",
    )
    columns: Columns = Field(
        default=Columns(), description="Columns of the log; default: guessed from the usual names."
    )
    keep_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        exclude_if=lambda share: share == 1,
        description="Share of the interactions that is kept, drawn at random from `seed` before min_interactions is "
        "applied, to measure what a sparser log costs; smaller shares are parts of larger ones.",
    )
    min_interactions: int = Field(
        default=5, ge=1, strict=True, description="Drop users and items with fewer interactions (k-core)."
    )
    k_core: Literal["iterated", "once"] = Field(
        default="iterated", description="Drop repeatedly until nothing changes, or once, by counts in the raw log."
    )
    duplicates: Literal["keep", "exact", "first", "last"] = Field(
        default="keep",
        description="Several interactions of a user with an item: keep all; drop rows that repeat another one, time, "
        "rating and weight included; or keep only the first or the last in time, with its weight.",
    )
    window: int = Field(
        default=20, ge=3, le=1_000_000, strict=True, description="Largest number of items in a window, target included."
    )
    windows: Literal["disjoint", "paper", "last"] = Field(
        default="disjoint",
        description="How to cut sequences: from the end without overlap; as the paper did, with a head window that "
        "overlaps (and leaks); or only the last window of each user.",
    )
    split: Literal["leave_one_out", "temporal", "given"] = Field(
        default="leave_one_out",
        description="Validation and test targets: the last two items of each window; one item of each user (or "
        "session) after each of two cuts in global time; or each row of valid_source and test_source.",
    )
    temporal_shares: tuple[float, float, float] = Field(
        default=(0.8, 0.1, 0.1),
        description="Shares of the interactions before, between and after the two cuts of the temporal split.",
    )
    num_shards: Annotated[int, Field(ge=1, strict=True)] | Literal["auto"] = Field(
        default="auto",
        description="Number of shards (files) of each split, which is also the largest possible number of ranks; auto "
        "is 64, doubled until a shard has at most 16,384 training rows. What an epoch is made of depends on it.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        strict=True,
        description="Seed of the assignment of rows to shards, and of keep_share.",
    )
    expected: Annotated[dict[str, Annotated[int, Field(ge=0, strict=True)]], NOTHING] = Field(
        default={},
        exclude_if=lambda expected: not expected,
        description="Counts that dataset.json must have, such as {windows: 3173, items: 3646, interactions_in_windows: "
        "57826}: prepare refuses another log than the one meant.",
    )
    noise: NoiseOptions = Field(
        default=NoiseOptions(),
        exclude_if=lambda noise: noise.is_none,  # so that a dataset without noise keeps its fingerprint
        description="Noise in the training interactions.",
    )

    @field_validator("noise", "keep", "weights", mode="before")
    @classmethod
    def _null_is_nothing(cls, section: Any) -> Any:
        return {} if section is None else section

    @field_validator("keep", mode="before")
    @classmethod
    def _conditions_are_values(cls, keep: Any) -> Any:
        """One sentence for a mapping, instead of one for each type that a value might have had."""
        for column, wanted in keep.items() if isinstance(keep, Mapping) else ():
            if isinstance(wanted, Mapping) or wanted is None:
                raise ValueError(f"{column}: needs a value, a list of values, or a comparison such as '>= 4'")
        return keep

    @field_validator("weights", mode="before")
    @classmethod
    def _values_are_text(cls, weights: Any) -> Any:
        """YAML reads `true`, `5` and `0.5` as what they are; in a file they are text."""
        if not isinstance(weights, Mapping):
            return weights
        return {
            column: {
                str(value).lower() if isinstance(value, bool) else str(value): weight for value, weight in by.items()
            }
            if isinstance(by, Mapping)
            else by
            for column, by in weights.items()
        }

    @field_validator("format")
    @classmethod
    def _format_is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in READERS:
            raise ValueError(f"no reader '{name}'{did_you_mean(name, READERS)}; there are {listed(READERS)}")
        return name

    @field_validator("separator")
    @classmethod
    def _separator_separates(cls, separator: str | None) -> str | None:
        if separator is not None and (not separator or set(separator) & set('\r\n"') or not separator.isascii()):
            raise ValueError(f"{quoted(separator)} is no separator; name the ASCII characters between two fields")
        return separator

    @field_validator("keep")
    @classmethod
    def _conditions_are_meant(cls, keep: dict[str, Any]) -> dict[str, Any]:
        for column, wanted in keep.items():
            try:
                condition(wanted)
            except ValueError as error:
                raise ValueError(f"{column}: {error}") from None
        return keep

    @field_validator("source", "valid_source", "test_source", "path")
    @classmethod
    def _place_is_named(cls, place: str | None) -> str | None:
        if place is not None and not place.strip():
            raise ValueError("is empty: name a file, a folder or a fetched data set")
        return place

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str | None) -> str | None:
        try:
            "x".encode(encoding or "utf-8")
        except LookupError:
            raise ValueError(
                f"unknown text encoding '{encoding}'; use one such as utf-8, latin-1, cp1252 or gb18030"
            ) from None
        return encoding

    @field_validator("temporal_shares")
    @classmethod
    def _shares_are_shares(cls, shares: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"needs three positive shares that add up to 1, not {shares}")
        return shares

    @property
    def layout(self) -> Layout:
        """What the config says about the form of the log."""
        skips = self.on_bad_rows == "skip"
        return Layout(
            self.columns,
            self.header,
            self.encoding,
            self.separator,
            self.keep,
            self.weights,
            skips,
            self.max_unpacked_gib,
        )

    @model_validator(mode="after")
    def _form_fits(self) -> Self:
        """Only delimited text may lack a header, and only without a header are columns given by position."""
        if self.format not in (None, "delimited") and self.layout.is_of_delimited_text:
            raise ValueError(
                f"header, encoding and separator apply to delimited text, not to format {self.format}; remove them"
            )
        positions = self.columns.positions
        if self.header is not False and positions:
            raise ValueError(f"columns by position ({positions}) need a file without a header; set header: false")
        by_name = {role: name for role, name in self.columns.given.items() if role not in positions and name != NONE}
        if self.header is False and by_name:
            raise ValueError(f"a file without a header has no column names ({by_name}); give positions instead")
        if self.header is False and not {"user", "item", "timestamp"} <= self.columns.given.keys():
            raise ValueError(
                "header: false needs columns by position, such as columns: {user: 1, item: 2, timestamp: 3}, or "
                "timestamp: none if each user's rows are in order of time already"
            )
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.source is None) == (self.path is None):
            raise ValueError("give either source (a raw log) or path (a prepared dataset), and not both")
        if self.path is not None and not self.noise.is_none:
            raise ValueError("noise is added when a raw log is prepared; give source instead of path")
        return self

    @model_validator(mode="after")
    def _split_fits(self) -> Self:
        """A given split is the rows of its files, so that nothing else may choose among them."""
        given = self.valid_source is not None and self.test_source is not None
        if (self.split == "given") != given or (self.valid_source is None) != (self.test_source is None):
            raise ValueError(
                "split: given takes training interactions from source, and needs both valid_source and test_source, "
                "which nothing else reads"
            )
        chooses = self.min_interactions > 1 or self.duplicates != "keep" or self.keep_share < 1
        if self.split == "given" and chooses:
            raise ValueError(
                "split: given takes the rows of its files as they are; set min_interactions: 1, duplicates: keep and "
                "keep_share: 1 (dataset.keep chooses among rows)"
            )
        return self
