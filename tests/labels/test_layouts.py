"""Label files are the same bytes on every mesh data × catalog, for models whose item tables are slices."""

from pathlib import Path
from typing import Any

import pytest
import torch

from csrec_dist import models
from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.layout import LabelRanks, catalog_groups, label_columns
from csrec_dist.errors import UserError
from csrec_dist.labels import LabelMember, Reading, labeller, read_index, top_k, write_labels
from csrec_dist.labels import format as formats
from csrec_dist.labels.options import LabelOptions
from csrec_dist.models import SequentialModel
from tests.helpers import label_fixtures as fixtures
from tests.helpers.catalog_ranks import own_group
from tests.helpers.ranks import run_ranks

LAYOUTS = [(1, 1), (2, 1), (2, 2), (4, 2), (3, 1), (3, 3)]
"""(ranks, catalog_parallel): data × catalog = 1×1, 2×1, 1×2, 2×2, 3×1, 1×3."""
NAMES, WIDTHS = ("gru4rec", "bert4rec"), (6, 4)
KINDS: dict[str, dict[str, Any]] = {
    "factored": {"options": LabelOptions(dtype="float32")},
    "prob_mean": {"options": LabelOptions(dtype="float32", combine="prob_mean")},
    "half": {"options": LabelOptions(dtype="float16"), "reading": Reading(2.0)},
    "topk": {"options": LabelOptions(form="topk", dtype="float32", keep=5), "reading": Reading(2.0)},
    "topk_of_all": {"options": LabelOptions(form="topk", dtype="bfloat16", keep=99), "reading": Reading(kl="forward")},
    "auto": {
        "options": LabelOptions(form="auto", dtype="auto", keep=2, tolerance=5.0),
        "reading": Reading(2.0, "forward"),
    },
}

KINDS_OF = {1: ("factored", "topk"), 2: tuple(KINDS)}
DENSE = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3)]
"""Layouts of dense labels: whole tables, or one group of slices."""


def build(member: int, group: Group) -> SequentialModel:
    config = models.config_class(NAMES[member]).model_validate({"width": WIDTHS[member]})
    model = models.build(config, fixtures.NUM_ITEMS, fixtures.WINDOW - 1, 3, group)
    with torch.no_grad():
        model.item_table.weight *= 3
        if model.item_table.bias is not None:
            model.item_table.bias += torch.linspace(-1, 1, fixtures.NUM_ITEMS)[model.item_table.catalog.rows]
    return model


def label(rank: int, world_size: int, catalog_parallel: int, dataset: str, root: str) -> None:
    formats.ITEMS_PER_FILE, labeller.BATCH_ROWS = 10, 7
    # Three rows in a chunk, so that the last batches of two ranks may have different numbers of them.
    labeller.BLOCK_ITEMS, labeller.CHUNK_BYTES = 7, 3 * 8 * fixtures.NUM_ITEMS
    top_k.BLOCK_ITEMS, top_k.CHUNK_ROWS = 7, 9
    torch.set_num_threads(1)
    world = Group(tuple(range(world_size)), rank, torch.distributed.group.WORLD if world_size > 1 else None)
    group = own_group(rank, catalog_groups(range(world_size), catalog_parallel))
    for num_members in (1, 2):
        columns = label_columns(num_members, world_size, catalog_parallel)
        column_group = own_group(rank, [column.ranks for column in columns])
        column = next(column for column in columns if rank in column.ranks)
        held = {member: build(member, group) for member in column.members_of(column_group.rank, num_members)}
        members = [LabelMember(name=NAMES[m], width=WIDTHS[m], fingerprint="f") for m in range(num_members)]
        where = LabelRanks(column, column_group, world)
        for name in KINDS_OF[num_members]:
            folder = f"{root}/{world_size}x{catalog_parallel}-{num_members}-{name}"
            write_labels(folder, Dataset(dataset), held, members, where, device=torch.device("cpu"), **KINDS[name])
        if (world_size, catalog_parallel) in DENSE:
            folder = f"{root}/{world_size}x{catalog_parallel}-{num_members}-dense"
            options = LabelOptions(form="dense", dtype="float32")
            write_labels(folder, Dataset(dataset), held, members, where, device=torch.device("cpu"), options=options)


@pytest.mark.long
def test_label_files_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    dataset = fixtures.write_dataset(tmp_path / "dataset", fixtures.make_rows(num_shards=4, num_rows=19))
    for world_size, catalog_parallel in LAYOUTS:
        if world_size == 1:
            label(0, 1, 1, str(dataset.folder), str(tmp_path))
        else:
            run_ranks(label, world_size, catalog_parallel, str(dataset.folder), str(tmp_path))
    for num_members, name in [(num, name) for num, names in KINDS_OF.items() for name in names]:
        alone, *others = (fixtures.file_bytes(tmp_path / f"{w}x{k}-{num_members}-{name}") for w, k in LAYOUTS)
        for layout, other in zip(LAYOUTS[1:], others, strict=True):
            assert other.keys() == alone.keys(), (name, layout)
            assert [file for file in alone if other[file] != alone[file]] == [], (num_members, name, layout)
    for num_members in KINDS_OF:
        alone, *others = (fixtures.file_bytes(tmp_path / f"{w}x{k}-{num_members}-dense") for w, k in DENSE)
        assert others == [alone] * len(others)
    assert read_index(tmp_path / "1x1-2-auto").form == "topk"


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (formats, "ITEMS_PER_FILE"),
        (labeller, "BATCH_ROWS"),
        (labeller, "BLOCK_ITEMS"),
        (labeller, "CHUNK_BYTES"),
        (top_k, "BLOCK_ITEMS"),
        (top_k, "CHUNK_ROWS"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))


def test_dense_labels_of_several_groups_of_slices_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    members = [LabelMember(name="m", width=WIDTHS[0], fingerprint="f")]
    two = LabelRanks(label_columns(2, 4, 2)[0], Group((0, 2), 0), Group((0, 1, 2, 3), 0))
    with pytest.raises(UserError, match=r"dense needs whole rows.*factored or topk"):
        write_labels(
            tmp_path, dataset, {0: build(0, Group((0, 1), 0))}, members * 2, two,
            device=torch.device("cpu"), options=LabelOptions(form="dense"),
        )  # fmt: skip
