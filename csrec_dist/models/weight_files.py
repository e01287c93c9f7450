"""The weights in a model's folder, in one file or in several with an index: checked, then read by name and rows."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError

from csrec_dist.errors import UserError
from csrec_dist.files import check_cover, read_json
from csrec_dist.tensor_files import checksum_problem, open_tensors

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_FILE = "model-{:05d}-of-{:05d}.safetensors"
ROW_NAME = re.compile(r"(.+)\[(\d+):(\d+)\]")
CONFIG_KEY = "config"
"""Names, in a file's metadata, the fingerprint of the config.json that the weights were saved with."""
REPAIR = "Write the model again, or take back the files as they were saved."

Shape = tuple[int, ...]


class WeightIndex(BaseModel):
    """The index of several files: the file, in the index's own folder, of each tensor or of some rows of it."""

    weight_map: dict[str, Annotated[str, Field(pattern=r"^model-\d{5,}-of-\d{5,}\.safetensors$")]]


class Part(NamedTuple):
    """What a file holds of a tensor: the rows from `first` on, under a name of its own."""

    first: int
    name: str
    file: Any
    shape: Shape


def row_name(name: str, rows: slice) -> str:
    """What some rows of a tensor are called in a file of their own."""
    return f"{name}[{rows.start}:{rows.stop}]"


def weight_files(folder: Path | str) -> list[Path]:
    """The files that hold the folder's weights, the index among them if there is one; empty where there are none."""
    plain, index = Path(folder) / WEIGHTS_FILE, Path(folder) / INDEX_FILE
    if plain.exists() or not index.exists():
        return [plain] if plain.exists() else []
    return [index, *(Path(folder) / file for file in sorted(set(_read_index(index).weight_map.values())))]


class StoredWeights:
    """A folder's weights, opened for reading. Raises UserError where a file is absent, broken or not readable."""

    def __init__(self, folder: Path | str) -> None:
        plain, index = Path(folder) / WEIGHTS_FILE, Path(folder) / INDEX_FILE
        is_split = not plain.exists() and index.exists()
        self.path = index if is_split else plain
        self._parts: dict[str, list[Part]] = {}
        self._configs: dict[Path, str] = {}
        opened = cache(_open)
        names = _read_index(index).weight_map if is_split else dict.fromkeys(opened(plain).keys(), WEIGHTS_FILE)
        for name, file in names.items():
            self._add(name, plain.with_name(file), opened(plain.with_name(file)))
        for parts in self._parts.values():
            parts.sort(key=lambda part: part.first)

    def _add(self, name: str, path: Path, file: Any) -> None:
        with _explained(path):
            shape = tuple(file.get_slice(name).get_shape())
            config = (file.metadata() or {}).get(CONFIG_KEY)
        if config is not None:
            self._configs[path] = config
        match = ROW_NAME.fullmatch(name) if self.path.name == INDEX_FILE else None
        whole, first, stop = (match[1], int(match[2]), int(match[3])) if match else (name, 0, 0)
        if match and shape[:1] != (stop - first,):
            raise UserError(f"{path}: {name} has the shape {list(shape)}, which are other rows. {REPAIR}")
        self._parts.setdefault(whole, []).append(Part(first, name, file, shape))

    def require(self, shapes: Mapping[str, Shape]) -> None:
        """UserError unless the tensors are those of `shapes`, each row once."""
        problems = [f"{name} is missing" for name in shapes.keys() - self._parts.keys()]
        problems += [f"{name} is not a tensor of this model" for name in self._parts.keys() - shapes.keys()]
        for name in shapes.keys() & self._parts.keys():
            problems += self._misfits(name, shapes[name])
        if problems:
            raise UserError(
                f"{self.path} does not fit the config.json beside it: {'; '.join(sorted(problems)[:3])}. {REPAIR}"
            )

    def require_config(self, fingerprint: str) -> None:
        """UserError where a file was saved with another config.json than the one of this fingerprint.

        Many options, such as the longest history of a recurrent model, are in no tensor's shape, and change scores
        without a word. Files that do not name their config.json, as other tools write them, are taken as they are.
        """
        for path, saved_with in self._configs.items():
            if saved_with != fingerprint:
                raise UserError(
                    f"{path} was saved with another config.json than the one beside it: that was edited, or the "
                    f"weights are another model's. {REPAIR}"
                )

    def _misfits(self, name: str, shape: Shape) -> list[str]:
        parts = self._parts[name]
        if len(parts) == 1 and parts[0].name == name:
            stored = parts[0].shape
            return [] if stored == shape else [f"{name} has the shape {list(stored)}, by the config {list(shape)}"]
        for part in parts:
            if len(part.shape) != len(shape) or part.shape[1:] != shape[1:]:
                return [f"{part.name} has the shape {list(part.shape)}, rows of {list(shape)} by the config"]
        try:
            check_cover(f"rows of {name}", [(part.first, part.shape[0]) for part in parts], 0, shape[0])
        except ValueError as error:
            return [str(error)]
        return []

    def read(self, name: str, rows: slice | None = None) -> "Tensor":
        """A tensor that `require` has allowed, or some of its rows; UserError where a number in it is not finite."""
        import torch

        pieces = []
        for part in self._parts[name]:
            if rows is None:
                pieces.append(part.file.get_tensor(part.name))
            else:
                size = part.shape[0]
                low = min(max(rows.start - part.first, 0), size)
                high = min(max(rows.stop - part.first, low), size)
                pieces.append(part.file.get_slice(part.name)[low:high])
        tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        require_finite({name: tensor}, str(self.path))
        return tensor


CHECKED_NUMBERS = 1 << 18
"""That are looked at together: torch makes several tensors of as many numbers."""


def num_not_finite(tensor: "Tensor") -> int:
    """How many numbers of a tensor are NaN or infinite."""
    parts = tensor.flatten().split(CHECKED_NUMBERS)
    return tensor.numel() - sum(int(part.isfinite().sum()) for part in parts)


def require_finite(weights: "Mapping[str, Tensor]", source: str) -> None:
    """UserError if a weight is NaN or infinite: a model with such weights ranks nothing."""
    for name, tensor in weights.items():
        if num_wrong := num_not_finite(tensor):
            raise UserError(
                f"{source}: {num_wrong:,} of {tensor.numel():,} numbers of {name} are NaN or infinite; the training "
                "diverged, or the file was changed. Train the model again, at a lower learning rate if that was it."
            )


def _read_index(path: Path) -> WeightIndex:
    try:
        return WeightIndex.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        raise UserError(
            f"{path} is not an index of this folder's files, model-00001-of-0000N.safetensors …: {place}: "
            f"{first['msg']}. {REPAIR}"
        ) from None


def _open(path: Path) -> Any:
    with _explained(path):
        opened = open_tensors(path)
        if problem := checksum_problem(path):
            raise UserError(f"{problem} {REPAIR}")
        return opened


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What is wrong with a file, as a UserError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist, although the config.json beside it does. {REPAIR}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}). {REPAIR}") from None
