"""A model's folder in Hugging Face style: model.safetensors and config.json."""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.errors import UserError
from csrec_dist.files import fingerprint, read_json, write_json
from csrec_dist.models.table import shapes_alone
from csrec_dist.models.weight_files import CONFIG_KEY, INDEX_FILE, SHARD_FILE, WEIGHTS_FILE, row_name
from csrec_dist.tensor_files import StreamedTensor, save_tensors, stream_tensors

CONFIG_FILE = "config.json"

ConfigT = TypeVar("ConfigT", bound=BaseModel)
ModelT = TypeVar("ModelT", bound=nn.Module)


class Description(BaseModel):
    """What config.json says: `model_type` is the model's name, `architectures` its class."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    architectures: list[str] = Field(min_length=1)
    model_type: str
    num_items: int = Field(ge=1, lt=1 << 31)
    max_length: int = Field(ge=1, le=1_000_000)
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

    def fingerprint(self, config: BaseModel | None = None) -> str:
        """What the weights' files say of the config.json that they were saved with.

        Given the parsed `config`, the spelling of its values (1 or 1.0) does not count. Keys that the file does not
        give are left out, so that a new option with a default changes no fingerprint.
        """
        values = self.config if config is None else config.model_dump(mode="json", exclude_unset=True)
        return fingerprint(self.model_dump(mode="json") | {"config": values})

    def require_items(self, num_items: int, folder: Path | str) -> None:
        """UserError unless the model knows so many items."""
        if self.num_items != num_items:
            raise UserError(
                f"{folder} knows {self.num_items} items, not {num_items}; give a model that was trained on these items."
            )

    def without_memory(self, make: Callable[[Any, int, int], ModelT], config: BaseModel, folder: Path | str) -> ModelT:
        """The model with its shapes, but without values or memory for them; UserError where there is no such model."""
        try:
            with shapes_alone():
                return make(config, self.num_items, self.max_length)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{Path(folder) / CONFIG_FILE} asks for sizes that no tensor has: {reason}.") from None


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
    sliced: Collection[str],
    catalog: CatalogSlice,
) -> None:
    """Write a model's folder, its config last: a folder with a config is whole.

    The weights called as in `sliced` are those of the slice, and the catalog group's first rank writes for all.
    """
    refuse_foreign(folder)
    whole = {name: StreamedTensor.of(tensor) for name, tensor in weights.items() if name not in sliced}
    shapes = {name: (catalog.num_items, *weights[name].shape[1:]) for name in sliced}
    parts = {name: _row_blocks(catalog, weights[name]) for name in sliced}
    streamed = {name: StreamedTensor(weights[name].dtype, shapes[name], parts[name]) for name in sliced}
    path = Path(folder) / WEIGHTS_FILE if catalog.group.is_leader else None
    stream_tensors(path, whole | streamed, _metadata(description))
    if catalog.group.is_leader:
        (Path(folder) / INDEX_FILE).unlink(missing_ok=True)
        write_json(Path(folder) / CONFIG_FILE, description.model_dump(mode="json"))


def write_sharded(
    folder: Path | str,
    weights: Mapping[str, Tensor],
    description: Description,
    sliced: Collection[str],
    catalog: CatalogSlice,
) -> None:
    """Write a file for each rank of the catalog group: its rows, called as in `row_name`; in the first all else too.

    The first rank then writes the index, in the usual format, and the config.
    """
    group, folder = catalog.group, Path(folder)
    refuse_foreign(folder)
    tensors = {row_name(name, catalog.rows): weights[name] for name in sliced}
    if group.is_leader:
        tensors |= {name: tensor for name, tensor in weights.items() if name not in sliced}
    file = SHARD_FILE.format(group.rank + 1, group.size)
    save_tensors(folder / file, tensors, metadata=_metadata(description))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    parts = group.gather_objects({"file": file, "names": sorted(tensors), "size": size})
    if group.is_leader:
        files = {name: part["file"] for part in parts for name in part["names"]}
        total = sum(part["size"] for part in parts)
        (folder / WEIGHTS_FILE).unlink(missing_ok=True)  # a reader would take it rather than the index
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": files})
        write_json(folder / CONFIG_FILE, description.model_dump(mode="json"))


def _metadata(description: Description) -> dict[str, str]:
    return {"format": "pt", CONFIG_KEY: description.fingerprint()}


def refuse_foreign(folder: Path | str) -> None:
    """UserError for a folder whose config.json is another library's: its model would be written over."""
    path = Path(folder) / CONFIG_FILE
    if path.exists():
        try:
            read_description(folder)
        except UserError as error:
            raise UserError(f"No model is saved over {folder}: {error} Give another folder.") from None


def _row_blocks(catalog: CatalogSlice, rows: Tensor) -> Iterator[Tensor]:
    return (block for _, block in catalog.row_blocks(rows.detach()))


def read_description(folder: Path | str) -> Description:
    """What the folder's config.json says; UserError when it is absent or of another kind."""
    path = Path(folder) / CONFIG_FILE
    try:
        return Description.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path} does not describe a model of csrec_dist: {error}") from None
