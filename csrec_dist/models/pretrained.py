"""A model's folder in Hugging Face style: model.safetensors and config.json."""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, cat, nn

from csrec_dist.errors import UserError
from csrec_dist.files import StreamedTensor, read_json, save_tensors, stream_tensors, write_json

if TYPE_CHECKING:
    from csrec_dist.distributed.catalog import CatalogShard

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_FILE = "model-{:05d}-of-{:05d}.safetensors"
ROW_NAME = re.compile(r"(.+)\[(\d+):(\d+)\]")
CONFIG_FILE = "config.json"

ConfigT = TypeVar("ConfigT", bound=BaseModel)


class Description(BaseModel):
    """What config.json says: `model_type` is the model's name, `architectures` its class."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    architectures: list[str] = Field(min_length=1)
    model_type: str
    num_items: int = Field(ge=1)
    max_length: int = Field(ge=1)
    config: dict[str, Any]

    def require_architecture(self, name: str, folder: Path | str) -> None:
        """UserError unless the folder holds a model of class `name`."""
        if self.architectures[0] != name:
            raise UserError(
                f"{folder} holds a {self.architectures[0]}, not a {name}; load it with csrec_dist.models.load."
            )

    def parse_config(self, config_class: type[ConfigT], folder: Path | str) -> ConfigT:
        """The model's config; UserError where its keys or values are not allowed."""
        try:
            return config_class.model_validate(self.config)
        except ValidationError as error:
            raise UserError(f"{Path(folder) / CONFIG_FILE} is not a valid model config: {error}") from None


def describe(model: nn.Module, config: BaseModel, num_items: int, max_length: int) -> Description:
    """The description of `model` that goes into config.json."""
    values = config.model_dump(mode="json")
    return Description(
        architectures=[type(model).__name__],
        model_type=values["name"],
        num_items=num_items,
        max_length=max_length,
        config=values,
    )


def write(
    folder: Path | str,
    weights: Mapping[str, Tensor],
    description: Description,
    sliced: Collection[str] = (),
    catalog: "CatalogShard | None" = None,
) -> None:
    """Write a model's folder, its config last: a folder with a config is whole.

    With `catalog`, the weights called as in `sliced` are its slice, and the group's first rank writes for all.
    """
    path, metadata = Path(folder) / WEIGHTS_FILE, {"format": "pt"}
    if catalog is None:
        save_tensors(path, weights, metadata)
    else:
        whole = {name: StreamedTensor.of(tensor) for name, tensor in weights.items() if name not in sliced}
        shapes = {name: (catalog.num_items, *weights[name].shape[1:]) for name in sliced}
        parts = {name: _row_blocks(catalog, weights[name]) for name in sliced}
        streamed = {name: StreamedTensor(weights[name].dtype, shapes[name], parts[name]) for name in sliced}
        stream_tensors(path if catalog.group.is_leader else None, whole | streamed, metadata)
    if catalog is None or catalog.group.is_leader:
        write_json(Path(folder) / CONFIG_FILE, description.model_dump(mode="json"))


def write_sharded(
    folder: Path | str,
    weights: Mapping[str, Tensor],
    description: Description,
    sliced: Collection[str],
    catalog: "CatalogShard",
) -> None:
    """Write a file for each rank of the catalog group: its rows, called as in `row_name`; in the first all else too.

    The first rank then writes the index, in the usual format, and the config.
    """
    group, folder = catalog.group, Path(folder)
    own = {row_name(name, catalog.rows): weights[name] for name in sliced}
    if group.is_leader:
        own |= {name: tensor for name, tensor in weights.items() if name not in sliced}
    file = SHARD_FILE.format(group.rank + 1, group.size)
    save_tensors(folder / file, own, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in own.values())
    found = group.gather_objects({"file": file, "names": sorted(own), "size": size})
    if group.is_leader:
        files = {name: part["file"] for part in found for name in part["names"]}
        total = sum(part["size"] for part in found)
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": files})
        write_json(folder / CONFIG_FILE, description.model_dump(mode="json"))


def weight_files(folder: Path | str) -> list[Path]:
    """The files that hold the folder's weights, the index among them if there is one; empty where there are none."""
    plain, index = Path(folder) / WEIGHTS_FILE, Path(folder) / INDEX_FILE
    if plain.exists() or not index.exists():
        return [plain] if plain.exists() else []
    return [index, *(Path(folder) / file for file in sorted(set(read_json(index)["weight_map"].values())))]


def row_name(name: str, rows: slice) -> str:
    """What some rows of a tensor are called in a file of their own."""
    return f"{name}[{rows.start}:{rows.stop}]"


def _row_blocks(catalog: "CatalogShard", rows: Tensor) -> Iterator[Tensor]:
    return (block for _, block in catalog.row_blocks(rows.detach()))


def read_description(folder: Path | str) -> Description:
    """What the folder's config.json says; UserError when it is absent or of another kind."""
    path = Path(folder) / CONFIG_FILE
    try:
        return Description.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path} does not describe a model of csrec_dist: {error}") from None


def read_weights(
    folder: Path | str, model: nn.Module, sliced: Collection[str] = (), catalog: "CatalogShard | None" = None
) -> None:
    """Copy the folder's weights into `model`; UserError when they are absent, broken or do not fit.

    With `catalog`, only its rows are read of the weights called as in `sliced`.
    """
    path = Path(folder) / WEIGHTS_FILE
    try:
        if not path.exists() and (index := Path(folder) / INDEX_FILE).exists():
            path = index
            model.load_state_dict(_load_sharded(index, catalog))
        else:
            model.load_state_dict(load_file(path) if catalog is None else _load_slices(path, sliced, catalog))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist, although its {CONFIG_FILE} does; write the model again.") from None
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); write the model again.") from None
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the {CONFIG_FILE} beside it: {error}") from None


def _load_slices(path: Path, sliced: Collection[str], catalog: "CatalogShard") -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys() if name not in sliced}  # noqa: SIM118
        num_items = {name: file.get_slice(name).get_shape()[0] for name in sliced if name in file.keys()}  # noqa: SIM118
        if any(num != catalog.num_items for num in num_items.values()):
            raise RuntimeError(f"tables of {num_items} rows for {catalog.num_items} items")
        return found | {name: file.get_slice(name)[catalog.first : catalog.stop] for name in num_items}


def _load_sharded(index: Path, catalog: "CatalogShard | None") -> dict[str, Tensor]:
    """The weights of several files; with `catalog`, of tensors in parts the rows of its slice alone."""
    found: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for name, file in read_json(index)["weight_map"].items():
        with safe_open(index.parent / file, framework="pt") as opened:
            if (match := ROW_NAME.fullmatch(name)) is None:
                found[name] = opened.get_tensor(name)
                continue
            first, stop = int(match[2]), int(match[3])
            low = first if catalog is None else min(max(first, catalog.first), stop)
            high = stop if catalog is None else max(min(stop, catalog.stop), low)
            parts.setdefault(match[1], []).append((first, opened.get_slice(name)[low - first : high - first]))
    return found | {name: cat([rows for _, rows in sorted(each, key=_first)]) for name, each in parts.items()}


def _first(part: tuple[int, Tensor]) -> int:
    return part[0]
