"""Loading a model's folder, whole or in several files: in evaluation mode, and nothing that does not fit."""

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.distributed.groups import ALONE, Group
from csrec_dist.errors import UserError
from csrec_dist.models import MODELS, SequentialModel, build, config_class, load
from csrec_dist.models.pretrained import read_description
from tests.helpers.permissions import as_a_colleague
from tests.models.test_model_laws import MAX_LENGTH, NUM_ITEMS, WIDTH, every_model, make, small, windows

CUTS = (0, 20, 21, NUM_ITEMS)
INDEX = "model.safetensors.index.json"
TABLE = "item_table.weight"
Map = dict[str, str]


def saved(folder: Path, name: str) -> SequentialModel:
    """A model with dropout wherever it can be, and its folder."""
    rates = [key for key in config_class(name).model_fields if key.endswith("dropout")]
    model = make(name, torch.float32, **dict.fromkeys(rates, 0.5))
    model.save_pretrained(folder)
    return model


def metadata(path: Path) -> Map:
    """All that a file says of itself but the checksum, which a copy with other tensors would not have."""
    with safe_open(path, framework="pt") as file:
        return {key: value for key, value in (file.metadata() or {}).items() if key != "sha256"}


def split(folder: Path) -> Path:
    """Cut the folder's file into three: rows of the item table each, all else in the first; with an index."""
    whole, names = folder / "model.safetensors", {}
    weights = load_file(whole)
    for part, (first, stop) in enumerate(pairwise(CUTS), 1):
        file = f"model-{part:05d}-of-00003.safetensors"
        rows = {f"{key}[{first}:{stop}]": weights[key][first:stop] for key in weights if key.startswith("item_table.")}
        others = {key: weights[key] for key in weights if not key.startswith("item_table.") and part == 1}
        save_file(rows | others, folder / file, metadata(whole))
        (folder / file).chmod(0o644)
        names |= dict.fromkeys(rows | others, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    whole.unlink()
    return folder


def assert_repeats(model: SequentialModel, expected: torch.Tensor) -> None:
    assert not [name for name, module in model.named_modules() if module.training]
    for _ in range(2):
        torch.testing.assert_close(model.score(windows()), expected, rtol=0, atol=0)


@every_model
def test_a_loaded_model_is_in_evaluation_mode_and_repeats_its_scores(name: str, tmp_path: Path) -> None:
    expected = saved(tmp_path, name).score(windows())
    assert_repeats(load(tmp_path), expected)
    assert_repeats(MODELS[name].from_pretrained(tmp_path), expected)
    assert_repeats(load(split(tmp_path)), expected)


@every_model
def test_a_mapped_model_scores_alike_from_its_file(name: str, tmp_path: Path) -> None:
    expected = saved(tmp_path, name).score(windows())
    model, maps = load(tmp_path, is_mapped=True), Path("/proc/self/maps")
    assert not any(module.training for module in model.modules())
    # Where numbers begin in a file, kernels may take them in other pieces than in memory of torch's own.
    torch.testing.assert_close(model.score(windows()), expected, rtol=1e-4, atol=1e-5)
    if maps.exists():
        address = model.item_table.weight.data_ptr()
        for area, *_, path in map(str.split, maps.read_text().splitlines()):
            first, stop = (int(bound, 16) for bound in area.split("-"))
            if first <= address < stop:
                assert path == str(tmp_path / "model.safetensors")


@every_model
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_loaded_slice_is_in_evaluation_mode_and_has_its_rows(name: str, in_parts: bool, tmp_path: Path) -> None:
    table = saved(tmp_path, name).item_table.weight
    if in_parts:
        split(tmp_path)
    for size in (1, 2, 5):
        slices = [load(tmp_path, Group(tuple(range(size)), rank)) for rank in range(size)]
        assert torch.equal(torch.cat([model.item_table.weight for model in slices]), table)
        assert not any(module.training for model in slices for module in model.modules())


@every_model
def test_every_weight_has_to_be_finite(name: str, tmp_path: Path) -> None:
    saved(tmp_path, name)
    weights = load_file(tmp_path / "model.safetensors")
    for key, value in zip(weights, [math.nan, math.inf, -math.inf] * len(weights), strict=False):
        changed = {other: tensor.clone() for other, tensor in weights.items()}
        changed[key].flatten()[-1] = value
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=rf"1 of [\d,]+ numbers of {key} are NaN or infinite"):
            load(tmp_path)


@pytest.mark.parametrize("item", [0, 20, NUM_ITEMS - 1])
def test_rows_that_are_not_finite_are_refused_by_whoever_reads_them(item: int, tmp_path: Path) -> None:
    saved(tmp_path, "gru4rec")
    weights = load_file(tmp_path / "model.safetensors")
    weights[TABLE][item, 3] = math.nan
    save_file(weights, tmp_path / "model.safetensors")
    split(tmp_path)
    with pytest.raises(UserError, match=f"1 of 592 numbers of {TABLE} are NaN"):
        load(tmp_path)
    for rank in (0, 1):
        catalog = CatalogSlice.of(NUM_ITEMS, Group((0, 1), rank))
        if catalog.first <= item < catalog.stop:
            with pytest.raises(UserError, match=f"numbers of {TABLE} are NaN"):
                load(tmp_path, catalog.group)
        else:
            load(tmp_path, catalog.group)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    description = json.loads(path.read_text())
    for key, value in changes.items():
        (description if key in description else description["config"])[key] = value
    path.write_text(json.dumps(description))


@every_model
@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("change", [-1, 1, 10**12])
def test_sizes_that_are_not_those_of_the_weights_are_refused(
    name: str, in_parts: bool, change: int, tmp_path: Path
) -> None:
    model = saved(tmp_path, name)
    original = (tmp_path / "config.json").read_text()
    if in_parts:
        split(tmp_path)
    sizes = {"num_items": NUM_ITEMS + change, "width": WIDTH + 2 * change}
    if hasattr(model, "positions"):
        sizes["max_length"] = MAX_LENGTH + change
    for key, value in sizes.items():
        edit(tmp_path, **{key: value})
        with pytest.raises(
            UserError, match=r"by the config|rows of item_table|sizes that no tensor has|should be less than"
        ):
            load(tmp_path)
        (tmp_path / "config.json").write_text(original)
    load(tmp_path)


@every_model
@pytest.mark.parametrize("in_parts", [False, True])
def test_an_edited_config_is_refused_even_where_no_tensor_has_another_shape(
    name: str, in_parts: bool, tmp_path: Path
) -> None:
    model = saved(tmp_path, name)
    expected, original = model.score(windows()), (tmp_path / "config.json").read_text()
    if in_parts:
        split(tmp_path)
    edits: dict[str, float] = {"dropout": 0.25}
    edits |= {} if hasattr(model, "positions") else {"max_length": MAX_LENGTH - 1}
    edits |= {"num_heads": 4} if "num_heads" in type(model.config).model_fields else {}
    for key, value in edits.items():
        edit(tmp_path, **{key: value})
        with pytest.raises(UserError, match=rf"{tmp_path}\S+ was saved with another config\.json .*edited"):
            load(tmp_path)
        with pytest.raises(UserError, match="was saved with another config"):
            load(tmp_path, Group((0, 1), 1))
        (tmp_path / "config.json").write_text(original)
    (tmp_path / "config.json").write_text(json.dumps(json.loads(original), sort_keys=True))
    assert_repeats(load(tmp_path), expected)


def test_numbers_of_a_config_may_be_spelled_otherwise(tmp_path: Path) -> None:
    make("gru4rec", dropout=0.0).save_pretrained(tmp_path)
    assert '"dropout": 0.0' in (tmp_path / "config.json").read_text()
    edit(tmp_path, dropout=0)
    load(tmp_path)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_of_several_files_names_its_config(number: int, parts: Path, tmp_path: Path) -> None:
    """A file of a model that has tensors of the same shapes but reads longer histories."""
    other, file = tmp_path / "other", f"model-{number:05d}-of-00003.safetensors"
    build(small("gru4rec", dropout=0.5), NUM_ITEMS, MAX_LENGTH + 1, 1).save_pretrained(other)
    shutil.copy(split(other) / file, parts / file)
    with pytest.raises(UserError, match=rf"{file} was saved with another config"):
        load(parts)


@pytest.mark.parametrize("in_parts", [False, True])
def test_weights_that_another_tool_has_written_are_loaded_without_the_name_of_their_config(
    in_parts: bool, tmp_path: Path
) -> None:
    expected = saved(tmp_path, "gru4rec").score(windows())
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    if in_parts:
        split(tmp_path)
    assert_repeats(load(tmp_path), expected)


def test_the_message_names_tensor_and_shapes(tmp_path: Path) -> None:
    saved(tmp_path, "sasrec")
    edit(tmp_path, max_length=9)
    with pytest.raises(UserError, match=r"positions has the shape \[11, 16\], by the config \[9, 16\]"):
        load(tmp_path)
    edit(tmp_path, max_length=11, num_layers=1)
    with pytest.raises(UserError, match=r"layers\.1\.\S+ is not a tensor of this model"):
        load(tmp_path)
    edit(tmp_path, num_layers=3)
    with pytest.raises(UserError, match=r"layers\.2\.\S+ is missing"):
        load(tmp_path)
    edit(tmp_path, num_layers=2)
    with pytest.raises(UserError, match="knows 37 items, not 36"):
        read_description(tmp_path).require_items(36, tmp_path)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A model in three files; other.safetensors beside the folder is one of another model."""
    saved(tmp_path / "model", "gru4rec")
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "model-00001-of-00003.safetensors")
    return split(tmp_path / "model")


def change_index(folder: Path, change: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    changed = change(index["weight_map"]) if callable(change) else change
    (folder / INDEX).write_text(json.dumps({"weight_map": changed} if callable(change) else changed))


def renamed(old: str, new: str) -> Any:
    return lambda names: {(new if name == old else name): file for name, file in names.items()}


def moved(name: str, file: str) -> Any:
    return lambda names: {**names, name: file}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved(TABLE + "[20:21]", "../model-00001-of-00003.safetensors"), "not an index of this folder's files"),
        (moved(TABLE + "[20:21]", "/etc/passwd"), "not an index of this folder's files"),
        (moved(TABLE + "[20:21]", "other.safetensors"), "not an index of this folder's files"),
        (
            moved(TABLE + "[20:21]", "model-00004-of-00003.safetensors"),
            "model-00004-of-00003.safetensors does not exist",
        ),
        (moved(TABLE + "[20:21]", "model-00001-of-00003.safetensors"), "is not a whole safetensors file"),
        ([], "not an index of this folder's files"),
        ({}, "weight_map: Field required"),
        ({"weight_map": {TABLE: 3}}, "not an index of this folder's files"),
        (lambda names: {name: file for name, file in names.items() if "[20:21]" not in name}, "a gap"),
        (lambda names: {name: file for name, file in names.items() if "[21:37]" not in name}, "hold 21 rows of"),
        (
            lambda names: {name: file for name, file in names.items() if "output.bias" not in name},
            "output.bias is missing",
        ),
    ],
)
def test_an_index_that_does_not_name_the_folder_s_files_and_all_rows_is_refused(
    parts: Path, change: Any, message: str
) -> None:
    load(parts)
    change_index(parts, change)
    for group in (ALONE, Group((0, 1), 1)):
        with pytest.raises(UserError, match=message):
            load(parts, group)


def test_rows_that_overlap_where_others_are_missing_are_refused(parts: Path) -> None:
    """As many rows as there are items: 0 … 19, then 19 again instead of 20."""
    file = parts / "model-00002-of-00003.safetensors"
    save_file({f"{TABLE}[19:20]": load_file(file)[f"{TABLE}[20:21]"]}, file)
    change_index(parts, renamed(f"{TABLE}[20:21]", f"{TABLE}[19:20]"))
    with pytest.raises(UserError, match=r"rows of item_table\.weight have an overlap"):
        load(parts)


def test_rows_under_the_name_of_other_rows_are_refused(parts: Path) -> None:
    file = parts / "model-00002-of-00003.safetensors"
    save_file({f"{TABLE}[20:25]": load_file(file)[f"{TABLE}[20:21]"]}, file)
    change_index(parts, renamed(f"{TABLE}[20:21]", f"{TABLE}[20:25]"))
    with pytest.raises(UserError, match=r"20:25\] has the shape \[1, 16\], which are other rows"):
        load(parts)


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_file_that_may_not_be_read_is_not_said_to_be_absent(in_parts: bool, tmp_path: Path) -> None:
    saved(tmp_path, "gru4rec")
    file = split(tmp_path) / "model-00002-of-00003.safetensors" if in_parts else tmp_path / "model.safetensors"
    with as_a_colleague(file), pytest.raises(UserError, match=f"{file.name} cannot be read: Permission denied"):
        load(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path)
