"""The files of a soft-label cache and their index, which says of which dataset and members they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from csrec_dist.data.dataset import Dataset
from csrec_dist.errors import UserError
from csrec_dist.files import check_cover, differences, exists, fingerprint, has_checksum, read_json, write_record
from csrec_dist.labels.options import Combine, DType, Form, combining_problem
from csrec_dist.tensor_files import TensorSpec, read_header

FORMAT_VERSION = 1
INDEX_NAME = "label_cache.index.json"
ITEMS_PER_FILE = 65_536


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LabelMember(_Value):
    """One teacher whose logits are in the labels; `fingerprint` is that of its weights."""

    name: str
    width: PositiveInt
    fingerprint: str


class _StoredFile(_Value):
    bytes: PositiveInt
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class LabelShard(_StoredFile):
    """A file with the labels of examples first_example … first_example + num_examples − 1 of train."""

    file: str = Field(pattern=r"^labels-\d{5,}-of-\d{5,}\.safetensors$")
    first_example: NonNegativeInt
    num_examples: NonNegativeInt


class ItemShard(_StoredFile):
    """A file with the members' item tables for items first_item … first_item + num_items − 1."""

    file: str = Field(pattern=r"^items-\d{5,}-of-\d{5,}\.safetensors$")
    first_item: PositiveInt
    num_items: PositiveInt


class LabelError(_Value):
    """The error of storing labels in one form and number type, on a sample of examples.

    `largest` and `mean` are absolute differences of logits (for topk, of those that are stored). `divergence` is the
    mean, in nats, of KL between the r of Eq. 19 from exact labels and the r′ from stored ones, where the items that
    topk leaves out share their mass evenly: KL(r ‖ r′) for the forward direction and KL(r′ ‖ r) for the reverse.
    """

    form: Form
    dtype: DType
    keep: PositiveInt | None = None
    bytes: PositiveInt
    largest: float
    mean: float
    divergence: float


class Measured(_Value):
    """The errors that were measured on `num_examples` examples, at one temperature and direction.

    Where form or number type were chosen by them, `tolerance` is the largest divergence allowed.
    """

    temperature: float
    kl: str
    tolerance: float | None = None
    num_examples: PositiveInt
    errors: tuple[LabelError, ...]


class LabelSource(_Value):
    """All that decides the content of a cache. Caches of equal source and version have equal bytes on equal machines.

    `dtype` is the number type of what is stored for each example (states, logits or values). `keep` and `temperature`
    are those of top-k labels: items kept of each row, and the T of its log-sum-exp. Raises ValueError when the members
    cannot be combined like this.
    """

    form: Form
    combine: Combine = "logit_mean"
    weights: tuple[float, ...] | None = None
    dtype: DType = "float32"
    keep: PositiveInt | None = None
    temperature: float | None = Field(None, gt=0)
    num_examples: NonNegativeInt
    num_items: PositiveInt
    members: tuple[LabelMember, ...] = Field(min_length=1)
    dataset_fingerprint: str
    id_map_fingerprint: str

    @model_validator(mode="after")
    def _check_combining(self) -> Self:
        if problem := combining_problem(self.combine, self.weights, len(self.members), self.form):
            raise ValueError(problem)
        if (self.form == "topk") != (self.keep is not None and self.temperature is not None):
            raise ValueError("keep and temperature belong to topk labels, and to no others")
        if self.keep is not None and self.keep > self.num_items:
            raise ValueError(f"{self.keep} items cannot be kept of {self.num_items}")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """The members' widths, in member order."""
        return tuple(member.width for member in self.members)

    def label_tensors(self, num_examples: int) -> dict[str, TensorSpec]:
        """What a file stores of `num_examples` examples, by name."""
        if self.form == "factored":
            return {"states": TensorSpec(self.dtype, (num_examples, sum(self.widths)))}
        if self.form == "dense":
            return {"logits": TensorSpec(self.dtype, (num_examples, self.num_items))}
        assert self.keep is not None
        return {
            "items": TensorSpec("int32", (num_examples, self.keep)),
            "logsumexp": TensorSpec("float32", (num_examples,)),
            "values": TensorSpec(self.dtype, (num_examples, self.keep)),
        }

    def item_tensors(self, num_items: int, has_bias: bool) -> dict[str, TensorSpec]:
        """What a file stores of `num_items` items, by name."""
        tensors = {"item_weight": TensorSpec("float32", (num_items, sum(self.widths)))}
        if has_bias:
            tensors["item_bias"] = TensorSpec("float32", self.bias_shape(num_items))
        return tensors

    def bias_shape(self, num_items: int) -> tuple[int, ...]:
        """The shape of the item bias of `num_items` items: one for all members, or one each for prob_mean."""
        return (num_items, len(self.members)) if self.combine == "prob_mean" else (num_items,)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on the fields that are set."""
        return fingerprint(self.model_dump(mode="json", include=set(LabelSource.model_fields), exclude_none=True))

    def differences(self, expected: "LabelSource") -> list[str]:
        """What differs from `expected`, one phrase for each value."""
        return differences(self._values(), expected._values())

    def _values(self) -> dict[str, Any]:
        """The fields; members as texts, in the order in which their states stand side by side."""
        members = [f"{member.name} ({member.width} wide, {member.fingerprint})" for member in self.members]
        return self.model_dump(mode="json", include=set(LabelSource.model_fields)) | {"members": members}


class LabelIndex(LabelSource):
    """The whole index. Raises ValueError when the files do not cover the examples and items without gap or overlap."""

    format_version: Literal[1] = 1
    has_bias: bool
    measured: Measured | None = None
    shards: tuple[LabelShard, ...]
    item_shards: tuple[ItemShard, ...]

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        check_cover("examples", [(s.first_example, s.num_examples) for s in self.shards], 0, self.num_examples)
        num_items = self.num_items if self.form == "factored" else 0
        check_cover("items", [(s.first_item, s.num_items) for s in self.item_shards], 1, num_items)
        return self

    @property
    def files(self) -> tuple[LabelShard | ItemShard, ...]:
        """All files of the cache but the index."""
        return self.shards + self.item_shards

    def foreign_to(self, dataset: Dataset) -> list[str]:
        """How the dataset differs from the one that was labelled, one phrase for each difference."""
        pairs = {
            "fingerprint": (self.dataset_fingerprint, dataset.fingerprint),
            "item ids": (self.id_map_fingerprint, dataset.items_sha256),
            "number of items": (self.num_items, dataset.num_items),
            "number of examples": (self.num_examples, dataset.splits["train"].num_examples),
        }
        return [
            f"{what} {str(labelled)[:16]} was labelled, {str(current)[:16]} is given"
            for what, (labelled, current) in pairs.items()
            if labelled != current
        ]

    def file_problem(self, path: Path, entry: LabelShard | ItemShard, *, deep: bool) -> str | None:
        """What is wrong with a file by its size and header, with `deep` by its checksum too; None if it is sound.

        `path` may be that of a copy.
        """
        if not path.exists():
            return f"{path.name} is missing."
        if (size := path.stat().st_size) != entry.bytes:
            return f"{path.name} has {size} bytes; the index says {entry.bytes}."
        if deep and not has_checksum(path, entry.sha256):
            return f"{path.name} has another checksum than the index says: its bytes were changed."
        try:
            header = read_header(path)
        except UserError as error:
            return str(error)
        first = entry.first_example if isinstance(entry, LabelShard) else entry.first_item
        if header.metadata.get("dataset") != self.dataset_fingerprint or header.metadata.get("first") != str(first):
            return f"{path.name} is a shard of another range or dataset."
        return None

    def write(self, folder: Path | str) -> None:
        """Write the index into `folder`, atomically."""
        write_record(Path(folder) / INDEX_NAME, self.model_dump(exclude_none=True))


def index_path(folder: Path | str) -> Path:
    """The file of the index in `folder`; UserError when there is none."""
    path = Path(folder) / INDEX_NAME
    if not exists(path):
        raise UserError(
            f"{folder} holds no soft-label cache: it has no {INDEX_NAME}. Run `label` first, or "
            "with --restart label where it was there."
        )
    return path


def read_index(folder: Path | str) -> LabelIndex:
    """The index in `folder`; UserError when it is missing, of another version, or not a valid index."""
    path = index_path(folder)
    value = read_json(path)
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has label format {version}; this version reads {FORMAT_VERSION}. Label again into another folder."
        )
    try:
        return LabelIndex.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"]) or "files"
        raise UserError(f"{path} is damaged: {location}: {first['msg']}. Remove the folder and label again.") from None


@dataclass(frozen=True)
class LabelFile:
    """A file that belongs to the cache: its kind and number, its range, and the header that it must have."""

    kind: Literal["labels", "items"]
    number: int
    name: str
    first: int
    count: int
    tensors: dict[str, TensorSpec]
    metadata: dict[str, str]

    def is_whole(self, path: Path) -> bool:
        """Whether `path` is a file of full size with exactly this header."""
        try:
            header = read_header(path)
        except (FileNotFoundError, UserError):
            return False
        is_complete = path.stat().st_size == header.file_bytes
        return is_complete and header.holds(self.tensors) and header.metadata == self.metadata


def label_files(source: LabelSource, dataset: Dataset, has_bias: bool) -> list[LabelFile]:
    """All files of the cache but the index: labels by shard, then item tables by rows."""
    split, num_items = dataset.splits["train"], source.num_items if source.form == "factored" else 0
    shards = zip(split.first_examples, split.shard_examples, strict=False)
    labels = [(first, count, source.label_tensors(count)) for first, count in shards]
    starts = range(0, num_items, ITEMS_PER_FILE)
    counts = [min(ITEMS_PER_FILE, num_items - start) for start in starts]
    tables = [
        (start + 1, count, source.item_tensors(count, has_bias)) for start, count in zip(starts, counts, strict=True)
    ]
    return [*_numbered(source, "labels", labels), *_numbered(source, "items", tables)]


def _numbered(
    source: LabelSource, kind: Literal["labels", "items"], parts: Sequence[tuple[int, int, dict[str, TensorSpec]]]
) -> Iterator[LabelFile]:
    """The files of a kind, from the range and the tensors of each."""
    for number, (first, count, tensors) in enumerate(parts):
        metadata = {
            "format": f"csrec_dist.labels.{FORMAT_VERSION}.{kind}",
            "source": source.fingerprint,
            "dataset": source.dataset_fingerprint,
            "first": str(first),
        }
        name = f"{kind}-{number:05d}-of-{len(parts):05d}.safetensors"
        yield LabelFile(kind, number, name, first, count, tensors, metadata)
