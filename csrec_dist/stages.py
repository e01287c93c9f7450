"""The work of each stage of a run, from files to files; every rank calls the same functions in the same order."""

from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csrec_dist import models
from csrec_dist.checkpoints import Checkpoints
from csrec_dist.config import Config, LoopOptions, TrainingOptions
from csrec_dist.data.lanes import owned_lanes
from csrec_dist.data.prepare import identify, prepare
from csrec_dist.data.stored import Dataset
from csrec_dist.data.stream import Batch, lane_batches
from csrec_dist.distributed import Group, Runtime
from csrec_dist.distributed.mesh import LabelColumn, TeachingSlot, label_columns, teaching_rounds
from csrec_dist.errors import UserError
from csrec_dist.evaluation import evaluate
from csrec_dist.files import fingerprint, sha256_file, write_json
from csrec_dist.labels import LabelCache, LabelMember, SoftLabels, write_labels
from csrec_dist.models import ItemTable, ModelConfig, SequentialModel
from csrec_dist.objectives import Loss, cross_entropy, distillation_parts
from csrec_dist.stagebook import StageBook
from csrec_dist.teachers import STRATEGIES, Member, Strategy
from csrec_dist.telemetry import StageLog
from csrec_dist.training import Objective, Trainer, TrainStep

EVALUATION_ROWS = 256


class Run:
    """One run: its configuration, its folder, its processes."""

    def __init__(self, config: Config, runtime: Runtime) -> None:
        self.config = config
        self.runtime = runtime
        self.folder = config.folder
        self.book = StageBook(self.folder)

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared dataset; UserError when it does not suit the config."""
        dataset = Dataset(self.config.dataset_folder)
        owned_lanes(dataset.num_lanes, self.runtime.rank, self.runtime.world_size)
        return dataset

    @property
    def strategy(self) -> Strategy:
        """The members of the run's teacher module."""
        config = self.config
        return STRATEGIES[config.method](config.teachers.num, config.teacher_model, config.seed)

    @property
    def member_names(self) -> list[str]:
        """The members' folders under teachers/, in order."""
        if self.config.method == "base":
            return []
        pretrained = self.config.teachers.pretrained
        return [f"teacher-{k}" for k in range(len(pretrained))] or [member.name for member in self.strategy.members]

    def log(self, stage: str, group: Group | None = None) -> StageLog:
        """The log of a stage; with a group, its leader writes the TensorBoard folder."""
        leads = self.runtime.is_main if group is None else group.is_leader
        return StageLog(stage, self.folder / "tensorboard" / stage if leads else None, show=self.runtime.is_main)


def member_folder(run: Run, name: str) -> Path:
    """Where a trained member is kept."""
    return run.folder / "teachers" / name


def weights_fingerprint(folder: Path) -> str:
    """16 digits that name a trained model's weights; UserError when there are none."""
    path = folder / "model.safetensors"
    if not path.exists():
        raise UserError(f"{folder} holds no trained model: {path.name} is missing.")
    return sha256_file(path)[:16]


def evaluate_model(run: Run, model: SequentialModel, split: str, group: Group) -> dict[str, float]:
    """Metrics of a model on all rows of a split, each rank of the group reading its own lanes."""
    lanes = owned_lanes(run.dataset.num_lanes, group.rank, group.size)
    options = run.config.evaluation
    batches: Iterable[Batch] = lane_batches(run.dataset, split, lanes, EVALUATION_ROWS)
    return evaluate(
        model,
        (batch.to(run.runtime.device) for batch in batches),
        top_n=sorted({*options.top_n, 10}),
        exclude_seen=options.exclude_seen,
        reduce=group.all_reduce_sum,
    )


def one_hot(states: Tensor, table: ItemTable, targets: Tensor, labels: SoftLabels | None) -> Loss:
    """Cross-entropy with the next item: the objective of Base and of the members (ℓ_ce)."""
    total, count = cross_entropy(states, table.weight, targets, item_bias=table.bias)
    return Loss(total, count, total.detach(), torch.zeros_like(total))


def student_objective(options: TrainingOptions) -> Objective:
    """The student's loss of Eq. 20."""

    def objective(states: Tensor, table: ItemTable, targets: Tensor, labels: SoftLabels | None) -> Loss:
        assert labels is not None
        return distillation_parts(
            states,
            table.weight,
            targets,
            labels,
            temperature=options.temperature,
            beta=options.beta,
            kl=options.kl,
            item_bias=table.bias,
        )

    return objective


def loop_settings(config: Config) -> dict[str, Any]:
    """The part of `training` that decides a model trained on one-hot labels."""
    return config.training.model_dump(mode="json", include=set(LoopOptions.model_fields) - {"log_steps"})


# --- prepare ---


def prepare_inputs(run: Run) -> dict[str, Any]:
    """Dataset options and the identity of the log."""
    options = run.config.dataset
    if options.path:
        return {"dataset": {"path": Dataset(options.path).fingerprint}}
    source = {key: value for key, value in identify(options).items() if key != "name"}
    return {"dataset": options.model_dump(mode="json", exclude={"source", "path"}), "source": source}


def prepare_dataset(run: Run) -> dict[str, Any]:
    """From the raw log to the dataset folder, on rank 0."""

    def work() -> dict[str, Any]:
        options, folder = run.config.dataset, run.config.dataset_folder
        if not options.path and not (folder / "dataset.json").exists():
            with run.log("prepare") as log:
                prepare(options, folder, log.say)
        found = Dataset(folder).fingerprint
        if not options.path and found != identify(options)["fingerprint"]:
            raise UserError(f"{folder} was prepared from another log or with other options; use --restart prepare.")
        return {"fingerprint": found}

    return run.runtime.on_main(work)


# --- teach ---


def teach_inputs(run: Run) -> dict[str, Any]:
    """Dataset, members and loop settings."""
    dataset = run.book.require("prepare").outputs["fingerprint"]
    if run.config.teachers.pretrained:
        found = [weights_fingerprint(Path(folder)) for folder in run.config.teachers.pretrained]
        return {"dataset": dataset, "pretrained": found}
    members = {m.name: {"seed": m.seed, "model": m.model.model_dump(mode="json")} for m in run.strategy.members}
    return {"dataset": dataset, "members": members, "training": loop_settings(run.config), "select": selection(run)}


def selection(run: Run) -> dict[str, Any]:
    """What early stopping looks at."""
    return {"exclude_seen": run.config.evaluation.exclude_seen}


def teach(run: Run) -> dict[str, Any]:
    """Train the members, several at once where there are ranks for it; or take trained ones."""
    if run.config.teachers.pretrained:
        run.runtime.on_main(lambda: take_pretrained(run))
    else:
        members = run.strategy.members
        todo = run.runtime.on_main(
            lambda: [k for k, m in enumerate(members) if not (member_folder(run, m.name) / "metrics.json").exists()]
        )
        for slots in teaching_rounds(todo, run.runtime.world_size):
            teach_round(run, members, slots)
    names = run.member_names
    found = run.runtime.on_main(lambda: {n: weights_fingerprint(member_folder(run, n)) for n in names})
    return {"members": found}


def take_pretrained(run: Run) -> None:
    """Copy trained models into the run, checked against its catalog."""
    for name, folder in zip(run.member_names, run.config.teachers.pretrained, strict=True):
        model = models.load(folder)
        if model.num_items != run.dataset.num_items or model.max_length < run.dataset.window - 1:
            raise UserError(
                f"The pretrained member {folder} knows {model.num_items} items and histories up to "
                f"{model.max_length}; the dataset has {run.dataset.num_items} items and histories up to "
                f"{run.dataset.window - 1}."
            )
        model.save_pretrained(member_folder(run, name))
        write_json(member_folder(run, name) / "metrics.json", {"taken_from": str(folder)})


def teach_round(run: Run, members: tuple[Member, ...], slots: list[TeachingSlot]) -> None:
    """Train one round of members side by side, each on its own ranks."""
    group = run.runtime.join_group([slot.ranks for slot in slots])
    slot = next(slot for slot in slots if run.runtime.rank in slot.ranks)
    member = members[slot.member]
    stage = f"teach/{member.name}"
    with run.log(stage, group) as log:
        if len(slots) > 1:
            log.say("; ".join(f"{members[s.member].name} on {rank_names(s.ranks)}" for s in slots))
        train_model(
            run, stage, member.model, member.seed, one_hot, group, log, member_folder(run, member.name), slot.member
        )
    run.runtime.world.barrier()


def rank_names(ranks: tuple[int, ...]) -> str:
    """ "rank 0", or "ranks 1, 2"."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def train_model(
    run: Run,
    stage: str,
    config: ModelConfig,
    seed: int,
    objective: Objective,
    group: Group,
    log: StageLog,
    folder: Path,
    identity: int = 0,
    labels: LabelCache | None = None,
) -> None:
    """Build, wrap, train and save one model on a group of ranks.

    `identity` tells models trained side by side apart: after wrapping, ranks of one identity must hold
    equal weights and ranks of different ones different weights.
    """
    model = models.build(config, run.dataset.num_items, run.dataset.window - 1, seed).to(run.runtime.device)
    step = run.runtime.wrap(TrainStep(model, objective), group)
    check_identities(run.runtime.world, identity, model)
    trainer = Trainer(
        step,
        model,
        run.dataset,
        group,
        run.config.training,
        seed,
        lambda: evaluate_model(run, model, "valid", group),
        log,
        labels,
    )
    checkpoints = Checkpoints(run.folder / "checkpoints" / stage, fingerprint(train_inputs(run, config, seed, labels)))
    trained = trainer.run(checkpoints)
    if group.is_leader:
        model.save_pretrained(folder)
        settings = {"model": model.config.model_dump(mode="json"), "seed": seed}
        write_json(folder / "metrics.json", {**settings, **asdict(trained)})
        checkpoints.clear()


def train_inputs(run: Run, config: ModelConfig, seed: int, labels: LabelCache | None) -> dict[str, Any]:
    """What a checkpoint belongs to."""
    values = {
        "dataset": run.dataset.fingerprint,
        "model": config.model_dump(mode="json"),
        "seed": seed,
        "loop": loop_settings(run.config),
    }
    if labels is not None:
        values |= {"labels": run.book.require("label").outputs, "student": student_settings(run.config)}
    return values


def check_identities(world: Group, identity: int, model: SequentialModel) -> None:
    """Assert that exactly the ranks of one model hold equal weights: a wrapper may have mixed them up."""
    digest = float(sum(parameter.detach().double().abs().sum() for parameter in model.parameters()))
    found = world.gather_objects([identity, digest])
    digests: dict[int, set[float]] = {}
    for owner, value in found:
        digests.setdefault(owner, set()).add(value)
    values = [next(iter(each)) for each in digests.values()]
    assert all(len(each) == 1 for each in digests.values()), f"ranks of one member differ after wrapping: {found}"
    assert len(set(values)) == len(values), f"different members hold the same weights after wrapping: {found}"


# --- label ---


def label_inputs(run: Run) -> dict[str, Any]:
    """Dataset, members' weights and the form of the labels."""
    return {
        "dataset": run.book.require("prepare").outputs["fingerprint"],
        **run.book.require("teach").outputs,
        "labels": run.config.labels.model_dump(mode="json"),
    }


def label(run: Run) -> dict[str, Any]:
    """Write the soft-label cache, all ranks together."""
    runtime, names = run.runtime, run.member_names
    columns = label_columns(len(names), runtime.world_size)
    group = runtime.join_group([column.ranks for column in columns])
    column = next(column for column in columns if runtime.rank in column.ranks)
    with run.log("label") as log:
        write_labels(
            run.folder / "labels",
            run.dataset,
            load_members(run, column, group),
            label_members(run),
            column,
            group,
            runtime.world,
            form=run.config.labels.form,
            device=runtime.device,
            progress=log.progress,
        )
    return runtime.on_main(lambda: {"index": sha256_file(run.folder / "labels" / "label_cache.index.json")[:16]})


def label_members(run: Run) -> list[LabelMember]:
    """Name, width and weights of the members, in order."""
    weights = run.book.require("teach").outputs["members"]
    folders = {name: member_folder(run, name) for name in run.member_names}
    return [
        LabelMember(name=name, width=models.load(folder).config.width, fingerprint=weights[name])
        for name, folder in folders.items()
    ]


def load_members(run: Run, column: LabelColumn, group: Group) -> dict[int, SequentialModel]:
    """The members this rank labels with, by their position in the strategy."""
    names = run.member_names
    held = column.members_of(group.rank, len(names))
    return {k: models.load(member_folder(run, names[k])).to(run.runtime.device) for k in held}


# --- distill and baseline ---


def student_settings(config: Config) -> dict[str, Any]:
    """The student's loss."""
    return config.training.model_dump(mode="json", include={"temperature", "beta", "kl"})


def baseline_inputs(run: Run) -> dict[str, Any]:
    """Dataset, model, seed and loop settings of the student trained on one-hot labels."""
    return {
        "dataset": run.book.require("prepare").outputs["fingerprint"],
        "model": run.config.model.model_dump(mode="json"),
        "seed": run.config.seed,
        "training": loop_settings(run.config),
        "select": selection(run),
    }


def distill_inputs(run: Run) -> dict[str, Any]:
    """The baseline's inputs, and the labels and the loss where there are labels."""
    inputs = baseline_inputs(run)
    if run.config.method != "base":
        inputs |= {"labels": run.book.require("label").outputs, "student": student_settings(run.config)}
    return inputs


def train_student(run: Run, stage: str, folder: str, objective: Objective, labels: LabelCache | None) -> dict[str, Any]:
    """Train the student on all ranks into `folder`."""
    target = run.folder / folder
    if not run.runtime.on_main((target / "metrics.json").exists):
        with run.log(stage) as log:
            world, config = run.runtime.world, run.config
            train_model(run, stage, config.model, config.seed, objective, world, log, target, labels=labels)
    return {"weights": run.runtime.on_main(lambda: weights_fingerprint(target))}


def distill(run: Run) -> dict[str, Any]:
    """Train the student: on the soft-label cache, or for method base on one-hot labels."""
    if run.config.method == "base":
        return train_student(run, "distill", "student", one_hot, None)
    labels = LabelCache(run.folder / "labels", run.dataset)
    return train_student(run, "distill", "student", student_objective(run.config.training), labels)


def baseline(run: Run) -> dict[str, Any]:
    """Train the student from the same seed on one-hot labels alone."""
    return train_student(run, "baseline", "base", one_hot, None)


# --- evaluate ---


def trained_models(run: Run) -> dict[str, Path]:
    """Folder of each trained model of the run: the student first."""
    folders = {"student": run.folder / "student"}
    if run.config.baseline:
        folders["base"] = run.folder / "base"
    return folders | {name: member_folder(run, name) for name in run.member_names}


def evaluate_inputs(run: Run) -> dict[str, Any]:
    """Dataset, all weights and the options of the evaluation."""
    inputs = {
        "dataset": run.book.require("prepare").outputs["fingerprint"],
        "student": run.book.require("distill").outputs["weights"],
        "evaluation": run.config.evaluation.model_dump(mode="json"),
    }
    if run.config.method != "base":
        inputs["members"] = run.book.require("teach").outputs["members"]
    if run.config.baseline:
        inputs["base"] = run.book.require("baseline").outputs["weights"]
    return inputs


def evaluate_all(run: Run) -> dict[str, Any]:
    """Validation and test metrics of the student, the baseline and the members, into metrics.json."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    with run.log("evaluate") as log:
        folders = trained_models(run)
        log.expect(len(folders))
        for name, folder in folders.items():
            model = models.load(folder).to(run.runtime.device)
            found[name] = {split: evaluate_model(run, model, split, run.runtime.world) for split in ("valid", "test")}
            log.advance(note=name)
        log.hparams(hparams(run.config), found["student"]["test"])
        log.scalars({f"test/{name}": value for name, value in found["student"]["test"].items()}, 0)
    if run.runtime.is_main:
        write_json(run.folder / "metrics.json", {**found["student"], "models": found})
    return {"test": found["student"]["test"]}


def hparams(config: Config) -> dict[str, Any]:
    """The settings that TensorBoard's HParams page shows."""
    shown: dict[str, Any] = {"method": config.method, "seed": config.seed}
    for section in ("model", "training"):
        shown |= {f"{section}.{key}": value for key, value in config.dump()[section].items() if value is not None}
    return shown
