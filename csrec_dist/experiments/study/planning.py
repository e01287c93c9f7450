"""What the runs of a study share: datasets, teachers with their labels, and single members of the teacher module."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from csrec_dist.config import Config
from csrec_dist.experiments.study.spec import Entry
from csrec_dist.files import link
from csrec_dist.runs.inputs import dataset_key, labels_key, member_key
from csrec_dist.runs.pipeline import stages_of
from csrec_dist.runs.run import Run
from csrec_dist.runs.starting import claim

SHARED_STAGES = ("prepare", "teach", "label")


@dataclass(eq=False)
class Task:
    """A run to do, after its donor has finished the stages `shared`, and its lenders the single members it borrows."""

    entry: Entry
    donor: "Task | None" = None
    shared: tuple[str, ...] = ()
    lenders: dict[str, tuple["Task", str]] = field(default_factory=dict)
    """By member: the run that trains it, and its name there."""

    @property
    def config(self) -> Config:
        """The run's config."""
        return self.entry.config

    @cached_property
    def run(self) -> Run:
        """The run's folder, config and records."""
        return self.entry.run

    @property
    def is_done(self) -> bool:
        """Whether the run has been evaluated."""
        return self.has_done("evaluate")

    @property
    def is_ready(self) -> bool:
        """Whether everything it takes from other runs is finished."""
        donated = self.donor is None or all(self.donor.has_done(stage) for stage in self.shared)
        return donated and all(lender.has_done("teach") for lender, _ in self.lenders.values())

    def has_done(self, stage: str) -> bool:
        """Whether a stage of the run is finished."""
        return self.run.record(stage) is not None

    def forget(self, failed: "Task") -> None:
        """Take nothing from a run that failed."""
        self.donor = None if self.donor is failed else self.donor
        self.lenders = {name: lender for name, lender in self.lenders.items() if lender[0] is not failed}

    @cached_property
    def members(self) -> dict[str, str]:
        """The names of the members that the run would train, by the fingerprint of what decides them."""
        module = () if self.config.teachers.pretrained else self.config.module.members
        return {member_key(self.config, member): member.name for member in module}

    @cached_property
    def makes(self) -> dict[str, str]:
        """The fingerprints of what others can take from the run, and the last stage that each needs."""
        made = {dataset_key(self.config): "prepare", **dict.fromkeys(self.members, "teach")}
        return made | ({labels_key(self.config): "label"} if self.config.num_members else {})


def plan_tasks(entries: Sequence[Entry], is_chosen: Callable[[Entry], bool] = lambda entry: True) -> list[Task]:
    """The chosen runs in order; each takes what it can from finished runs, otherwise from chosen runs before it."""
    tasks = [Task(entry) for entry in entries]
    makers: dict[str, Task] = {}
    for task in tasks:
        for key, stage in task.makes.items():
            if task.has_done(stage):
                makers.setdefault(key, task)
    todo = [task for task in tasks if is_chosen(task.entry)]
    for task in todo:
        _share(task, makers)
        for key in task.makes:
            makers.setdefault(key, task)
    return todo


def _share(task: Task, makers: dict[str, Task]) -> None:
    others = {key: maker for key, maker in makers.items() if maker is not task}
    teachers, dataset = (others.get(key(task.config)) for key in (labels_key, dataset_key))
    if teachers is not None and task.config.num_members:
        task.donor, task.shared = teachers, SHARED_STAGES
        return
    if dataset is not None:
        task.donor, task.shared = dataset, SHARED_STAGES[:1]
    for key, name in task.members.items():
        if key in others:
            task.lenders[name] = others[key], others[key].members[key]


def adopt(task: Task) -> None:
    """Take what other runs have finished and this one has not; UserError if its folder is not the folder of a run."""
    if not task.is_ready:
        return
    claim(task.run)
    run = task.run
    leaves = {stage.name: stage.leaves for stage in stages_of(task.config)}
    if task.donor is not None:
        for stage in task.shared:
            if run.record(stage) is None and not run.adopt(stage, task.donor.run, leaves[stage]):
                break
    if run.record("teach") is None:
        for name, (lender, its_name) in task.lenders.items():
            link(run.folder / "teachers" / name, lender.run.folder / "teachers" / its_name)
