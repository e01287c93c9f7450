"""What a run will do and need, estimated before it starts: stages, layout of the ranks, steps, bytes."""

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from csrec_dist.config import Config, load_config
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.order import EpochOrder, owned_shards, refuse_idle_ranks
from csrec_dist.distributed.copies import ModelBytes, wide_layers
from csrec_dist.distributed.layout import label_columns, teaching_rounds
from csrec_dist.errors import UserError
from csrec_dist.files import changed_keys, flatten
from csrec_dist.labels import label_bytes
from csrec_dist.labels.options import FORMS
from csrec_dist.models import ModelConfig, config_class, model_class
from csrec_dist.models.pretrained import read_description
from csrec_dist.models.table import shapes_alone
from csrec_dist.runs.run import Run, stage_names
from csrec_dist.teachers import Member

BYTES_PER_NUMBER = 4
ENGINES = ("ddp", "fsdp", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class PlanRow:
    """One line of the plan; lines of a section stand together."""

    section: str
    what: str
    value: str


def plan_rows(config: Config, world_size: int) -> list[PlanRow]:
    """The plan of a run on `world_size` processes; it has sizes once the dataset is prepared.

    Raises:
        UserError: `world_size` is not positive, or there are more processes than shards.
    """
    if world_size < 1:
        raise UserError(f"--num-processes must be at least 1, not {world_size}.")
    planner = _Planner(Run.of(config).resolved, world_size)
    return [*planner.stages(), *planner.data(), *planner.layout(), *planner.steps(), *planner.sizes()]


def print_plan(config: Config, world_size: int, console: Console) -> None:
    """Print the plan as a table; raises as `plan_rows` does."""
    rows = plan_rows(config, world_size)
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
        run = Run.of(self.config)
        if not (run.dataset_folder / "dataset.json").exists():
            return None
        dataset = run.dataset
        refuse_idle_ranks(dataset.num_shards, dataset.splits["train"].num_rows, self.world_size)
        return dataset

    @cached_property
    def _members(self) -> list[ModelConfig]:
        """The models of the members; those of pretrained members come from their folders."""
        teachers = self.config.teachers
        if not teachers.pretrained:
            return self.config.teacher_models
        descriptions = [(read_description(folder), folder) for folder in teachers.pretrained]
        return [saved.parse_config(config_class(saved.model_type), folder) for saved, folder in descriptions]

    def stages(self) -> list[PlanRow]:
        """Which stages are done, and which config keys have changed since."""
        run = Run.of(self.config)
        return [
            PlanRow("run", "folder", str(run.folder)),
            *(
                PlanRow("run", stage, "to do" if run.record(stage) is None else "done")
                for stage in stage_names(self.config)
            ),
            *(PlanRow("run", "changed since the run began", change) for change in self._changes(run.folder)),
        ]

    def _changes(self, folder: Path) -> list[str]:
        saved = folder / "config.yaml"
        if not saved.exists():
            return []
        before, now = flatten(Run(folder, load_config(saved)).resolved.dump()), flatten(self.config.dump())
        return [f"{key}: was {before.get(key)}, is {now.get(key)}" for key in changed_keys(before, now)]

    def data(self) -> list[PlanRow]:
        """The size of the dataset, or its source."""
        options, dataset = self.config.dataset, self._dataset
        if dataset is None:
            return [PlanRow("dataset", "not prepared yet", f"source {options.source or options.path}")]
        train = dataset.splits["train"]
        rows = [
            PlanRow("dataset", "users, items", f"{dataset.num_users:,}, {dataset.num_items:,}"),
            PlanRow("dataset", "training windows, examples", f"{train.num_rows:,}, {train.num_examples:,}"),
        ]
        shards = [len(owned_shards(dataset.num_shards, rank, self.world_size)) for rank in range(self.world_size)]
        fewest, most = min(shards), max(shards)
        per_rank = str(most) if fewest == most else f"{fewest} to {most}"
        return [
            *rows,
            PlanRow("dataset", "shards per rank", f"{per_rank} of {dataset.num_shards}"),
            PlanRow("dataset", "most ranks", f"{dataset.num_shards}; `csrec-dist reshard` makes a dataset for more"),
        ]

    def layout(self) -> list[PlanRow]:
        """Members on ranks: teaching by round, labelling by column."""
        student = PlanRow("ranks", "student", f"on all {self.world_size}")
        if not self._members:
            return [student]
        if self.config.teachers.pretrained:
            return [PlanRow("ranks", "teach", "members are pretrained"), *self._labelling(), student]
        texts = [text for members in self.config.module.rounds for text in self._rounds([m.name for m in members])]
        teaching = [PlanRow("ranks", f"teach, round {number}", text) for number, text in enumerate(texts, 1)]
        return [*teaching, *self._labelling(), student]

    def _rounds(self, names: list[str]) -> list[str]:
        """Which members train on which ranks: all rounds or, with `reassign`, which members begin and which follow."""
        assigned = teaching_rounds(list(range(len(names))), self.world_size, self.config.distributed.catalog_parallel)
        ranks = {
            slot: f"rank {slot.ranks[0]}" if len(slot.ranks) == 1 else f"ranks {slot.ranks[0]} to {slot.ranks[-1]}"
            for slots in assigned
            for slot in slots
        }
        rounds = ["; ".join(f"{names[slot.member]} on {ranks[slot]}" for slot in slots) for slots in assigned]
        if not self.config.distributed.reassign or self.world_size == 1:
            return rounds
        waiting = names[len(assigned[0]) :]
        return ["; ".join([rounds[0], *(f"{name} on the first free ranks" for name in waiting)])]

    def _labelling(self) -> list[PlanRow]:
        names = self.config.labelling_names
        rows = []
        for column in label_columns(len(names), self.world_size, self.config.distributed.catalog_parallel):
            ranks = [
                f"rank {rank}: " + ", ".join(names[k] for k in column.members_of(position, len(names)))
                for position, rank in enumerate(column.ranks)
            ]
            rows.append(PlanRow("ranks", "label", "; ".join(ranks)))
        return rows

    def steps(self) -> list[PlanRow]:
        """Steps per epoch, and at most in all."""
        if self._dataset is None:
            size = self.config.training.batch_size
            return [PlanRow("steps", "global batch", f"{size} windows" if size else "by the size of the log")]
        training = Run.of(self.config).training
        rows = [PlanRow("steps", "global batch", f"{training.batch_size} windows")]
        order = EpochOrder(self._dataset.splits["train"].shard_rows, training.batch_size, self.config.seed, 0)
        most = min(order.num_steps * training.max_epochs, training.max_steps or sys.maxsize)
        rows.append(PlanRow("steps", "steps per epoch", f"{order.num_steps:,}"))
        return [*rows, PlanRow("steps", "maximum number of steps", f"{most:,} for each model")]

    def sizes(self) -> list[PlanRow]:
        """Bytes of the models, of the soft labels, and of each rank."""
        if self._dataset is None:
            return []
        student, members = self._size(self.config.model), [self._size(member) for member in self._members]
        names = self.config.member_names
        rows = [PlanRow("bytes", name, member.text) for name, member in zip(names, members, strict=True)]
        num_shards = self._dataset.num_shards
        most_shards = len(owned_shards(num_shards, 0, self.world_size))  # rank 0 has the most
        num_windows = -(-Run.of(self.config).training.batch_size * most_shards // num_shards)
        kept = f"; on a GPU up to {self.config.labels.device_mib:,} MiB of soft labels" if self._members else ""
        return [
            PlanRow("bytes", "student", student.text),
            *rows,
            *self._label_rows(any(member.has_bias for member in members)),
            *self._memory_rows(student, members),
            PlanRow("bytes", "memory per rank, besides", f"the activations of about {num_windows} windows{kept}"),
        ]

    def _memory_rows(self, student: "ModelSize", members: list["ModelSize"]) -> list[PlanRow]:
        """What a rank holds at most, whichever model it trains: under each engine that takes these slices."""
        slices, has_tables = self.config.distributed.catalog_parallel, self.config.labels.form in ("factored", "auto")
        # The student is trained beside the labels' item tables, a regularised teacher beside the regulariser's.
        tables = dict(zip(self.config.member_names, (member.item_table for member in members), strict=True))
        labels = sum(tables[name] for name in self.config.labelling_names) // slices if has_tables else 0
        taught = () if self.config.teachers.pretrained else self.config.module.members
        beside = [tables[each.regularised_by] // slices if each.regularised_by else 0 for each in taught]
        teachers = [self._with_noise(size.bytes, each) for size, each in zip(members, taught, strict=False)]
        teams = self._team_sizes(len(teachers))
        rows = []
        for engine in ENGINES if slices == 1 else ENGINES[:2]:
            trained = [student.bytes.of_rank(engine, self.world_size, slices)]
            trained[0] = trained[0]._replace(device=trained[0].device + labels)
            for teacher, size, table in zip(teachers, teams, beside, strict=True):
                of_rank = teacher.of_rank(engine, size, slices)
                trained.append(of_rank._replace(device=of_rank.device + table))
            device, host = max(each.device for each in trained), max(each.host for each in trained)
            used = " (used)" if engine == self._engine else ""
            text = f"{mebibytes(device)} on its device, {mebibytes(host)} of the host's for checkpoints"
            rows.append(PlanRow("bytes", f"memory per rank, {engine}{used}", text))
        return rows

    def _with_noise(self, size: ModelBytes, member: Member) -> ModelBytes:
        """What a member trains: a regularised one has two tables [V, rank] for the noise matrix of Eq. 17."""
        options = self.config.teachers
        if member.regularised_by is None or not options.expectation:
            return size
        assert self._dataset is not None
        noise = 2 * self._dataset.num_items * options.noise_rank * BYTES_PER_NUMBER
        return replace(size, table=size.table + noise)

    @property
    def _engine(self) -> str:
        """The engine, with the ZeRO stage of DeepSpeed's."""
        options = self.config.distributed
        if options.engine != "deepspeed" or options.deepspeed is None:  # None: the launcher's file says the stage
            return options.engine
        from csrec_dist.distributed.engines.deepspeed import read_settings

        return f"zero{read_settings(options.deepspeed)['zero_optimization']['stage']}"

    def _team_sizes(self, num_members: int) -> list[int]:
        """The number of ranks that train each member, as it begins."""
        rounds = teaching_rounds(list(range(num_members)), self.world_size, self.config.distributed.catalog_parallel)
        sizes = {slot.member: len(slot.ranks) for slots in rounds for slot in slots}
        return [sizes[member] for member in range(num_members)]

    def _label_rows(self, has_bias: bool) -> list[PlanRow]:
        if not self._members:
            return []
        assert self._dataset is not None
        examples, items = self._dataset.splits["train"].num_examples, self._dataset.num_items
        members = dict(zip(self.config.member_names, self._members, strict=True))
        widths = [members[name].width for name in self.config.labelling_names]
        options = self.config.labels
        dtype = "float16" if options.dtype == "auto" else options.dtype
        rows = []
        for form in FORMS:
            size = label_bytes(form, examples, items, widths, has_bias, options.combine, dtype, options.keep)
            used = " (used)" if form == options.form else ""
            rows.append(PlanRow("bytes", f"soft labels, {form}{used}", mebibytes(size)))
        if "auto" in (options.form, options.dtype):
            text = f"in {dtype}; form and number type are chosen when the labels are written"
            rows.append(PlanRow("bytes", "soft labels", text))
        return rows

    def _size(self, config: ModelConfig) -> "ModelSize":
        assert self._dataset is not None
        return ModelSize.of(config, self._dataset)


@dataclass(frozen=True)
class ModelSize:
    """Bytes of a model's weights, and whether its item table has a bias."""

    bytes: ModelBytes
    has_bias: bool

    @classmethod
    def of(cls, config: ModelConfig, dataset: Dataset) -> Self:
        """Of a model of this dataset, which is not built."""
        with shapes_alone():
            model = model_class(config.name)(config, dataset.num_items, dataset.window - 1)
        sizes = {id(each): each.numel() * BYTES_PER_NUMBER for each in model.parameters()}
        table = sizes[id(model.item_table.weight)]
        layers = [sum(sizes[id(each)] for each in layer.parameters()) for layer in wide_layers(model)]
        rest = sum(sizes.values()) - table - sum(layers)
        size = ModelBytes(table, sum(layers), max(layers, default=0), rest)
        return cls(size, model.item_table.bias is not None)

    @property
    def item_table(self) -> int:
        """Bytes of the item table."""
        return self.bytes.table

    @property
    def parameters(self) -> int:
        """Bytes of all parameters."""
        return self.item_table + self.bytes.layers + self.bytes.rest

    @property
    def text(self) -> str:
        """The weights and what training adds to them."""
        return (
            f"{mebibytes(self.parameters)} ({mebibytes(self.item_table)} of it the item table), "
            f"gradients the same, Adam's states {mebibytes(2 * self.parameters)}"
        )


def mebibytes(size: int) -> str:
    """Bytes as MiB with one decimal."""
    return f"{size / 2**20:,.1f} MiB"
