"""What decides the result of a stage: every fingerprint and every "same inputs?" follows from the marks of the keys."""

from collections.abc import Callable, Mapping
from typing import Any

from csrec_dist.config import Config
from csrec_dist.files import changed_keys, differences, fingerprint
from csrec_dist.models.options import ModelConfig
from csrec_dist.options import MEMBERS, REGULARISED, Decides, Options
from csrec_dist.teachers import Member

Key = tuple[str, ...]
Marks = tuple[Decides, ...]


def marks_of(schema: type[Options], section: Key = (), inherited: Marks = ()) -> dict[Key, Marks]:
    """The marks of all keys of a schema by their path; a key without one has those of its section.

    A model is one key: what decides the model decides all of its options.

    Raises:
        TypeError: neither a key nor its section says what it decides.
    """
    found: dict[Key, Marks] = {}
    for name, field in schema.model_fields.items():
        key, kind = (*section, name), field.annotation
        marks = tuple(mark for mark in field.metadata if isinstance(mark, Decides)) or inherited
        if isinstance(kind, type) and issubclass(kind, Options) and kind is not ModelConfig:
            found |= marks_of(kind, key, marks)
        elif marks:
            found[key] = marks
        else:
            raise TypeError(f"{'.'.join(key)} does not say which stages it decides: mark it with `decides` or NOTHING.")
    return found


MARKS = marks_of(Config)


def _picked(config: Config, is_wanted: Callable[[Decides], bool]) -> dict[str, Any]:
    """The keys with a wanted mark and their values, nested as in the config."""
    picked: dict[str, Any] = {}
    values = config.dump()
    for key, marks in MARKS.items():
        if any(map(is_wanted, marks)):
            _copy(values, picked, key)
    return picked


def _copy(values: Mapping[str, Any], picked: dict[str, Any], key: Key) -> None:
    first, *rest = key
    if first not in values:  # a section that the dump leaves out, being as if it were not there
        return
    if rest:
        _copy(values[first], picked.setdefault(first, {}), tuple(rest))
    else:
        picked[first] = values[first]


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
