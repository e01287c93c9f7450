"""What decides a result: every fingerprint and every "same inputs?" follows from the marks of the keys. No torch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from csrec_dist.config import Config
from csrec_dist.errors import UserError
from csrec_dist.files import changed_keys, differences, exists, fingerprint, flatten, sha256_file
from csrec_dist.models.options import ModelConfig
from csrec_dist.models.weight_files import weight_files
from csrec_dist.options import INITIAL, MEMBERS, RANKS, REGULARISED, Decides, Options
from csrec_dist.runs.origin import Origin
from csrec_dist.runs.run import Record, Run
from csrec_dist.teachers import Member

Key = tuple[str, ...]
Marks = tuple[Decides, ...]


def marks_of(schema: type[Options], section: Key = (), inherited: Marks = ()) -> dict[Key, Marks]:
    """The marks of all keys of a schema by their path; a key without one has those of its section.

    A model is one key: what decides the model decides all of its options.

    Raises:
        TypeError: neither a key nor its section says what it decides.
    """
    marks_by_key: dict[Key, Marks] = {}
    for name, field in schema.model_fields.items():
        key, kind = (*section, name), field.annotation
        marks = tuple(mark for mark in field.metadata if isinstance(mark, Decides)) or inherited
        if isinstance(kind, type) and issubclass(kind, Options) and kind is not ModelConfig:
            marks_by_key |= marks_of(kind, key, marks)
        elif marks:
            marks_by_key[key] = marks
        else:
            raise TypeError(f"{'.'.join(key)} does not say which stages it decides: mark it with `decides` or NOTHING.")
    return marks_by_key


MARKS = marks_of(Config)


def _picked(config: Config, is_wanted: Callable[[Decides], bool]) -> dict[str, Any]:
    """The keys with a wanted mark and their values, nested as in the config."""
    picked: dict[str, Any] = {}
    dumped = config.dump()
    for (*sections, name), marks in MARKS.items():
        values, target = dumped, picked
        for section in sections:
            values = values.get(section, {})  # the dump leaves out a section that is as if it were not there
        if name in values and any(map(is_wanted, marks)):
            for section in sections:
                target = target.setdefault(section, {})
            target[name] = values[name]
    return picked


def deciding(config: Config, stage: str, through: str | None = None, limits: bool = False) -> dict[str, Any]:
    """The keys that decide a stage, as they are compared: by their own names, or `through` something else.

    Limits that can rise are among them only if `limits`.
    """

    def is_wanted(mark: Decides) -> bool:
        is_of_stage = stage in mark.stages and mark.through == through
        return is_of_stage and (limits or not mark.can_rise) and mark.when(config)

    return _picked(config, is_wanted)


def settings(config: Config) -> dict[str, Any]:
    """All keys that decide any result."""
    return _picked(config, lambda mark: bool(mark.stages))


def models_differ(there: Config, here: Config) -> list[str]:
    """In what two configs would make other labels or models of one dataset, in a few words each; limits may differ."""
    stages = {"teach", "label", "distill", "baseline"}

    def is_wanted(mark: Decides) -> bool:
        counts = mark.when(there) or mark.when(here)
        return counts and not mark.can_rise and not stages.isdisjoint(mark.stages)

    return differences(*(flatten(_picked(config, is_wanted)) for config in (there, here)))


def repeated_settings(config: Config) -> dict[str, Any]:
    """What is equal in repetitions of a run with other seeds, flat: the log, and all keys that decide a result."""
    values = flatten(settings(config) | {"dataset": config.dump()["dataset"]})
    return {key: value for key, value in values.items() if key != "seed"}


def protocol(run: Run) -> dict[str, Any]:
    """What must be equal for two runs' ranks to be comparable, flat; UserError if the run is not evaluated.

    As it was evaluated: the config may have other options by now, of an evaluation that is still to come.
    """
    inputs = run.require("evaluate").inputs
    options = flatten(deciding(run.config, "evaluate", RANKS))
    return {"dataset": inputs.get("dataset"), **{key: inputs.get(key, value) for key, value in options.items()}}


def settings_of(config: Config, member: Member) -> dict[str, Any]:
    """What tells a member from others: the robust loss's keys only where it is trained with it."""
    values: dict[str, Any] = {"seed": member.seed, "model": member.model.model_dump(mode="json")}
    if member.sample < 1:
        values["sample"] = member.sample
    if member.regularised_by is not None:
        values |= {"regularised_by": member.regularised_by, **deciding(config, "teach", REGULARISED)["teachers"]}
    return values


def members_of(config: Config) -> dict[str, Any]:
    """What decides each member that is trained, by name."""
    return {each.name: settings_of(config, each) for each in config.module.members}


def dataset_key(config: Config) -> str:
    """Names what a dataset is made from, before there is one: its keys, and where the log lies."""
    return fingerprint(config.dump()["dataset"])


def member_key(config: Config, member: Member) -> str:
    """Names all that decides one member: that which it is regularised by too, whatever its name."""
    side = [member_key(config, each) for each in config.module.members if each.name == member.regularised_by]
    values = settings_of(config, member) | {"regularised_by": side}
    return fingerprint([dataset_key(config), values, deciding(config, "teach", limits=True)])


def labels_key(config: Config) -> str:
    """Names all that decides the labels of a run: of which members they are, and how they are made."""
    taken = deciding(config, "teach", MEMBERS) if config.teachers.pretrained else {}
    taught = [members_of(config), config.labelling_names, deciding(config, "teach", limits=True)]
    return fingerprint([dataset_key(config), taken, taught, deciding(config, "label")])


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between flat inputs, and why max_epochs counts where it does; empty where they are the same."""
    text = "; ".join(differences(before, now))
    if "training.max_epochs" in changed_keys(before, now):
        text += f" (with schedule {now['training.schedule']} every learning rate depends on it)"
    return text


def weights_fingerprint(folder: Path) -> str:
    """16 digits that name a trained model's weights; UserError when there are none."""
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} has no trained model: model.safetensors is missing.")
    sums = [sha256_file(path) for path in files]
    return sums[0][:16] if len(sums) == 1 else fingerprint(sums)


def teach_inputs(run: Run) -> dict[str, Any]:
    """Dataset, members, and the keys that decide their training."""
    dataset = run.require("prepare").outputs["fingerprint"]
    if run.config.teachers.pretrained:
        done = _done_with(run, "teach", lambda config: config.teachers.pretrained)
        if done is not None and not all(map(exists, map(Path, run.config.teachers.pretrained))):
            return {"dataset": dataset, "pretrained": done.inputs["pretrained"]}
        weights = [weights_fingerprint(Path(folder)) for folder in run.config.teachers.pretrained]
        return {"dataset": dataset, "pretrained": weights}
    return {"dataset": dataset, "members": members_of(run.config), **deciding(run.config, "teach")}


def label_inputs(run: Run) -> dict[str, Any]:
    """Dataset, the labelling members' weights, and the keys that decide what is made of them."""
    weights = run.require("teach").outputs["members"]
    return {
        "dataset": run.require("prepare").outputs["fingerprint"],
        "members": {name: weights[name] for name in run.config.labelling_names},
        **deciding(run.config, "label"),
    }


def distill_inputs(run: Run) -> dict[str, Any]:
    """Dataset, the labels where there are some, and the keys that decide the student."""
    labels = {"labels": run.require("label").outputs} if run.config.num_members else {}
    start = {**labels, **_initial(run, "distill")}
    return {"dataset": run.require("prepare").outputs["fingerprint"], **start} | deciding(run.config, "distill")


def _done_with(run: Run, stage: str, folders: Callable[[Config], Any]) -> Record | None:
    """The record of a finished stage, if the run's config names the same folders as now: they may have gone since."""
    record = run.record(stage)
    return record if record and folders(Run(run.folder).config) == folders(run.config) else None


def _initial(run: Run, stage: str) -> dict[str, Any]:
    """The weights and the item ids of the model that the student starts from; empty where it starts from nothing."""
    folder = run.config.training.init_from
    if folder is None:
        return {}
    if Path(folder).resolve().is_relative_to(run.folder.resolve()):
        raise UserError(
            f"training.init_from: {folder} lies in the run's own folder, and its model would be replaced. Give the new "
            "run another name."
        )
    done = _done_with(run, stage, lambda config: config.training.init_from)
    if done is not None and not exists(Path(folder)):
        return {INITIAL: {key: done.inputs[f"{INITIAL}.{key}"] for key in ("weights", "id_map")}}
    origin = Origin.of(folder)
    return {INITIAL: {"weights": weights_fingerprint(origin.folder), "id_map": origin.id_map}}


def baseline_inputs(run: Run) -> dict[str, Any]:
    """Dataset, and the keys that decide a student trained on one-hot labels."""
    dataset = run.require("prepare").outputs["fingerprint"]
    return {"dataset": dataset, **_initial(run, "baseline")} | deciding(run.config, "baseline")


def evaluate_inputs(run: Run) -> dict[str, Any]:
    """Dataset, all weights and the options of the evaluation."""
    inputs: dict[str, Any] = {
        "dataset": run.require("prepare").outputs["fingerprint"],
        "student": run.require("distill").outputs["weights"],
        **deciding(run.config, "evaluate"),
    }
    if run.config.num_members:
        inputs["members"] = run.require("teach").outputs["members"]
    if run.config.baseline:
        inputs["base"] = run.require("baseline").outputs["weights"]
    return inputs
