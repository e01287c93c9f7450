"""What a run would do and need, before any work: stages, layout of the ranks, steps, bytes."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from csrec_dist.config import Config, load_config
from csrec_dist.data.lanes import EpochOrder, owned_lanes
from csrec_dist.data.stored import Dataset
from csrec_dist.distributed.mesh import label_columns, teaching_rounds
from csrec_dist.errors import UserError
from csrec_dist.labels import label_bytes
from csrec_dist.models import ModelConfig, model_class
from csrec_dist.pipeline import stages_of
from csrec_dist.stagebook import StageBook, flatten

BYTES_PER_NUMBER = 4
MODEL_COPIES = 5  # weights, gradients, Adam's two moments, and the best weights so far


@dataclass(frozen=True)
class PlanRow:
    """One line of the plan."""

    section: str
    what: str
    value: str


def plan(config: Config, world_size: int) -> list[PlanRow]:
    """The plan of a run on `world_size` processes; sizes are there once the dataset is prepared.

    Raises:
        UserError: `world_size` is not positive, or there are more processes than lanes.
    """
    if world_size < 1:
        raise UserError(f"A plan for {world_size} processes was asked for; give at least 1.")
    planner = _Planner(config, world_size)
    return [*planner.stages(), *planner.data(), *planner.layout(), *planner.steps(), *planner.sizes()]


def print_plan(config: Config, world_size: int, console: Console) -> None:
    """Print the plan as a table; raises as `plan` does."""
    rows = plan(config, world_size)
    table = Table(title=f"plan of {config.name} on {world_size} processes", title_justify="left", show_header=False)
    previous = None
    for row in rows:
        if previous not in (None, row.section):
            table.add_section()
        table.add_row(row.section if row.section != previous else "", row.what, Text(row.value))
        previous = row.section
    console.print(table)


@dataclass(frozen=True)
class _Planner:
    config: Config
    world_size: int

    @cached_property
    def _dataset(self) -> Dataset | None:
        path = self.config.dataset.path
        folder = Path(path) if path else self.config.folder / "dataset"
        if not (folder / "dataset.json").exists():
            return None
        dataset = Dataset(folder)
        owned_lanes(dataset.num_lanes, 0, self.world_size)
        return dataset

    @property
    def _num_members(self) -> int:
        teachers = self.config.teachers
        return 0 if self.config.method == "base" else len(teachers.pretrained) or teachers.num

    def stages(self) -> list[PlanRow]:
        """Which stages are done, and what has changed since in the config."""
        book = StageBook(self.config.folder)
        rows = [PlanRow("run", "folder", str(self.config.folder))]
        for stage in stages_of(self.config):
            rows.append(PlanRow("run", stage.name, "to do" if book.record(stage.name) is None else "done"))
        changes = self._changes()
        return rows + [PlanRow("run", "changed since it began", change) for change in changes]

    def _changes(self) -> list[str]:
        saved = self.config.folder / "config.yaml"
        if not saved.exists():
            return []
        before, now = flatten(load_config(saved).dump()), flatten(self.config.dump())
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return [f"{key}: was {before.get(key)}, is {now.get(key)}" for key in keys]

    def data(self) -> list[PlanRow]:
        """The dataset's size, or where it will come from."""
        options, dataset = self.config.dataset, self._dataset
        if dataset is None:
            return [PlanRow("dataset", "not prepared yet", f"source {options.source or options.path}")]
        train = dataset.splits["train"]
        rows = [
            PlanRow("dataset", "users, items", f"{dataset.num_users:,}, {dataset.num_items:,}"),
            PlanRow("dataset", "training windows, examples", f"{train.num_rows:,}, {train.num_examples:,}"),
        ]
        lanes = [len(owned_lanes(dataset.num_lanes, rank, self.world_size)) for rank in range(self.world_size)]
        return [*rows, PlanRow("dataset", "lanes of a rank", f"{_range(lanes)} of {dataset.num_lanes}")]

    def layout(self) -> list[PlanRow]:
        """Members on ranks, for teaching round by round and for labelling column by column."""
        if self._num_members == 0:
            return [PlanRow("ranks", "student", f"on all {self.world_size}")]
        rows = []
        if self.config.teachers.pretrained:
            rows.append(PlanRow("ranks", "teach", "members are taken from folders"))
        else:
            for number, slots in enumerate(teaching_rounds(list(range(self._num_members)), self.world_size), 1):
                text = "; ".join(f"teacher-{slot.member} on {_ranks(slot.ranks)}" for slot in slots)
                rows.append(PlanRow("ranks", f"teach, round {number}", text))
        for column in label_columns(self._num_members, self.world_size):
            held = [column.members_of(place, self._num_members) for place in range(len(column.ranks))]
            text = "; ".join(
                f"rank {rank}: " + ", ".join(f"teacher-{k}" for k in members)
                for rank, members in zip(column.ranks, held, strict=True)
            )
            rows.append(PlanRow("ranks", "label", text))
        return [*rows, PlanRow("ranks", "student", f"on all {self.world_size}")]

    def steps(self) -> list[PlanRow]:
        """Steps of an epoch, and at most."""
        training = self.config.training
        rows = [PlanRow("steps", "global batch", f"{training.batch_size} windows")]
        if self._dataset is None:
            return rows
        order = EpochOrder(self._dataset.splits["train"].lane_rows, training.batch_size, self.config.seed, 0)
        most = order.num_steps * training.max_epochs
        most = min(most, training.max_steps or most)
        rows.append(PlanRow("steps", "steps of an epoch", f"{order.num_steps:,}"))
        return [*rows, PlanRow("steps", "steps at most", f"{most:,} for each model")]

    def sizes(self) -> list[PlanRow]:
        """Bytes of the models, of the soft labels, and of what every rank holds."""
        if self._dataset is None:
            return []
        student, teacher = self._size(self.config.model), self._size(self.config.teacher_model)
        rows = [PlanRow("bytes", "student", student.text)]
        label_row = 0
        if self._num_members:
            rows.append(PlanRow("bytes", "each teacher", teacher.text))
            rows += self._label_rows(teacher)
            label_row = self._num_members * teacher.item_table if self.config.labels.form == "factored" else 0
        held = MODEL_COPIES * max(student.parameters, teacher.parameters if self._num_members else 0) + label_row
        text = f"{mebibytes(held)} and the activations of {self._windows_of_a_rank()} windows"
        return [*rows, PlanRow("bytes", "a rank holds", text)]

    def _label_rows(self, teacher: "_ModelSize") -> list[PlanRow]:
        assert self._dataset is not None
        examples, items = self._dataset.splits["train"].num_examples, self._dataset.num_items
        widths = [self.config.teacher_model.width] * self._num_members
        factored = label_bytes("factored", examples, items, widths, teacher.has_bias)
        dense = label_bytes("dense", examples, items, widths)
        used = self.config.labels.form
        return [
            PlanRow("bytes", f"soft labels, {form}{' (used)' * (form == used)}", mebibytes(size))
            for form, size in (("factored", factored), ("dense", dense))
        ]

    def _windows_of_a_rank(self) -> int:
        """Most windows of a batch on one rank, for a model that all ranks train."""
        return -(-self.config.training.batch_size // self.world_size)

    def _size(self, config: ModelConfig) -> "_ModelSize":
        assert self._dataset is not None
        with torch.device("meta"):
            model = model_class(config.name)(config, self._dataset.num_items, self._dataset.window - 1)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        table = model.item_table.weight.numel()
        return _ModelSize(parameters * BYTES_PER_NUMBER, table * BYTES_PER_NUMBER, model.item_table.bias is not None)


@dataclass(frozen=True)
class _ModelSize:
    parameters: int  # bytes
    item_table: int  # bytes
    has_bias: bool

    @property
    def text(self) -> str:
        return (
            f"{mebibytes(self.parameters)} ({mebibytes(self.item_table)} of it the item table), "
            f"gradients as much, Adam's states {mebibytes(2 * self.parameters)}"
        )


def mebibytes(size: int) -> str:
    """Bytes as MiB with one decimal."""
    return f"{size / 2**20:,.1f} MiB"


def _range(values: list[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _ranks(ranks: tuple[int, ...]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
