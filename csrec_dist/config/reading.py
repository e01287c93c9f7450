"""Reading a run's configuration: YAML, --set overrides, a complete check before any work."""

import difflib
import os
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from csrec_dist.config.schema import Config, impossible
from csrec_dist.errors import UserError, shortened
from csrec_dist.files import fingerprint, read_text
from csrec_dist.models.options import CONFIGS, ModelConfig, config_class, is_model

OptionsT = TypeVar("OptionsT", bound=BaseModel)
LONGEST_INPUT = 200
"""Characters of a wrong value that a message shows."""
MESSAGES = {"string_pattern_mismatch": "takes letters, digits, _, . and -, and begins with one of the first three"}
"""What is said in place of pydantic's words; the only pattern is that of a run's name, which is a folder's, too."""
LAUNCHERS_DEEPSPEED = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
"""Where `accelerate launch --use_deepspeed --deepspeed_config_file FILE` tells its ranks of the file."""


class BadYAMLError(Exception):
    """A text is no YAML, nested too deeply, or has a key twice; the message says what it is, and where."""


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which refuses duplicate keys; YAML itself silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping; BadYAMLError when a key occurs twice."""
        lines: dict[str, int] = {}
        for name, _ in node.value:
            key, line = str(name.value), name.start_mark.line + 1
            if key in lines:
                where = f"in line {line}" if line == lines[key] else f"in lines {lines[key]} and {line}"
                raise BadYAMLError(f"{key} occurs twice {where}; give it once")
            lines[key] = line
        return super().construct_mapping(node, deep)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, and check everything.

    Engine deepspeed without a settings file uses that of the launcher.

    Raises:
        UserError: the file is missing or not YAML, or keys or values are wrong (all are reported at once).
    """
    raw = read_yaml(path)
    for key, value in parse_overrides(overrides).items():
        set_key(raw, key, value)
    return parse_config(with_launchers_file(raw))


def with_launchers_file(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, where engine deepspeed without a settings file has that of the launcher."""
    distributed, file = raw.get("distributed"), os.environ.get(LAUNCHERS_DEEPSPEED)
    if file and isinstance(distributed, Mapping) and distributed.get("engine") == "deepspeed":
        return {**raw, "distributed": {**distributed, "deepspeed": distributed.get("deepspeed") or file}}
    return dict(raw)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Keys and values of several `section.key=value`, in their order.

    Raises:
        UserError: one is something else, or undoes one before it: another value of the same key, or a whole section
            after a key in it.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        key, value = parse_override(override)
        if key in values and values[key] != value:
            raise UserError(f"--set {key} is given twice, with {values[key]!r} and {value!r}; give it once.")
        inner = next((other for other in values if other.startswith(f"{key}.")), None)
        if inner is not None:
            raise UserError(f"--set {key}=… would undo the earlier --set {inner}=…; give the whole section first.")
        values[key] = value
    return values


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of `section.key=value`, the value being YAML; UserError when it is something else."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set takes section.key=value, not {override!r}.")
    try:
        return key.strip(), _parse_yaml(text)
    except BadYAMLError as error:
        raise UserError(f"--set {shortened(override, LONGEST_INPUT)}: {error}.") from None


def _parse_yaml(text: str) -> Any:
    """The plain values of a YAML text; BadYAMLError when it is none."""
    try:
        # Not safe_load, which takes no loader; this one is yaml.SafeLoader, but for keys that occur twice.
        return yaml.load(text, UniqueKeyLoader)  # nosec B506
    except yaml.YAMLError as error:
        raise BadYAMLError(f"it is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise BadYAMLError("it is nested too deeply for a configuration") from None
    except (ValueError, KeyError, AttributeError) as error:  # of what looks like a date or a number, or is said to
        raise BadYAMLError(f"it has a value that YAML cannot read ({error}); put it between quotes") from None


def read_yaml(path: Path | str, what: str = "config file", example: str = "init demo") -> dict[str, Any]:
    """The sections of a YAML file; UserError when it is missing, not YAML, or holds something else."""
    text = read_text(path, f"The {what}")
    try:
        raw = _parse_yaml(text)
    except BadYAMLError as error:
        raise UserError(f"{path}: {error}.") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a mapping of sections; `csrec-dist {example}` writes an example.")
    return raw


def is_resolved(path: Path) -> bool:
    """Whether a file was written by `Config.to_yaml`, which opens it with its hash: the mark of a run's folder."""
    try:
        with open(path, encoding="utf-8") as file:
            return bool(re.fullmatch(r"# hash: [0-9a-f]{16}\nname: .*\n", file.readline() + file.readline()))
    except PermissionError:
        raise  # the command line says whom to ask
    except (OSError, ValueError):  # missing, no file, a path too long, not text
        return False


def require_own_hash(path: Path) -> None:
    """UserError unless the values in a run's config.yaml have the hash in its first line."""
    first = read_text(path, "The config file").partition("\n")[0]
    if first != f"# hash: {fingerprint(read_yaml(path))}":
        raise UserError(
            f"{path} is damaged, or was edited: its values do not have the hash in its first line. Take it back from a "
            "copy, or start the run again with the config that it was started with."
        )


def set_key(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set `section.key` of plain values, making sections on the way; a model's name becomes one.

    Raises UserError where another value stands in the way.
    """
    *sections, last = key.split(".")
    place = raw
    for section in sections:
        inner = {} if place.get(section) is None else place[section]
        if section == "model" and isinstance(inner, str):
            inner = {"name": inner}
        if not isinstance(inner, dict):
            raise UserError(f"{key} cannot be set: {section} is a value, not a section.")
        place[section] = inner
        place = inner
    place[last] = value


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Check plain values against the schema; UserError that lists every mistake with the nearest right name."""
    config, problems = _by_schema(raw)
    if config is not None:
        problems += impossible(config)
    if problems or config is None:
        raise mistakes("The configuration has", problems)
    return config


def schema_mistakes(raw: Mapping[str, Any]) -> list[str]:
    """The unknown keys and wrong values, a sentence each; combinations that are impossible are not looked at."""
    return _by_schema(raw)[1]


def _by_schema(raw: Mapping[str, Any]) -> tuple[Config | None, list[str]]:
    """The values as a config, unless there are mistakes, and these; one model that has some is replaced meanwhile."""
    values = {key: _plain(value) for key, value in raw.items() if value is not None}
    problems = list(_oversized(values, "", set()))
    if problems:
        return None, problems
    if "model" in values:
        values["model"] = _parse_model(values["model"], "model", problems)
    teachers = values.get("teachers")
    if isinstance(teachers, dict) and teachers.get("model") is not None:
        values["teachers"] = teachers | {"model": _parse_models(teachers["model"], "teachers.model", problems)}
    config = None
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems += _describe(error, Config, "")
    return config, problems


def parse_section(schema: type[OptionsT], values: Mapping[str, Any], opening: str) -> OptionsT:
    """The keys of one section alone; UserError that lists every mistake, as `parse_config` does, after `opening`."""
    try:
        return schema.model_validate(_plain(values))
    except ValidationError as error:
        raise mistakes(opening, _describe(error, schema, "")) from None


def _plain(value: Any, made: dict[int, Any] | None = None) -> Any:
    """The value with numbers of numpy, such as a quantile of a table, as Python's; in mappings and lists too.

    YAML's references may stand for one list in very many places, or in itself: each is made once.
    """
    made = {} if made is None else made
    if isinstance(value, Mapping | list | tuple):
        if id(value) not in made:
            made[id(value)] = value  # what is in itself stays, for `_oversized` and the schema to refuse
            if isinstance(value, Mapping):
                made[id(value)] = {key: _plain(each, made) for key, each in value.items()}
            else:
                made[id(value)] = [_plain(each, made) for each in value]
        return made[id(value)]
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def mistakes(opening: str, problems: Sequence[str]) -> UserError:
    """One error for all mistakes, a line each, after "<opening> 2 mistakes:"."""
    listed = "\n".join(f"  - {problem}" for problem in problems)
    return UserError(f"{opening} {len(problems)} mistake{'s' * (len(problems) > 1)}:\n{listed}")


def _oversized(value: Any, place: str, visited: set[int]) -> Iterator[str]:
    """Say where plain values hold whole numbers that no setting can have; arrays and files take 64 bits.

    YAML's references may stand for one list in very many places: each is visited once.
    """
    if isinstance(value, Mapping | list):
        if id(value) in visited:
            return
        visited.add(id(value))
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _oversized(each, f"{place}.{key}" if place else str(key), visited)
    elif isinstance(value, int) and abs(value) >= 1 << 62:
        yield f"{place}: {shortened(str(value), 40)} is larger than any setting can be."


def _parse_models(value: Any, place: str, problems: list[str]) -> Any:
    """One model's config, or a list of them."""
    if not isinstance(value, list):
        return _parse_model(value, place, problems)
    return [_parse_model(each, f"{place}.{number}", problems) for number, each in enumerate(value)]


def _parse_model(value: Any, place: str, problems: list[str]) -> ModelConfig | Any:
    """The model's own config; on a mistake any valid config stands in, so that the rest is checked too.

    A name alone stands for the model with its defaults.
    """
    stand_in = next(iter(CONFIGS.values())).model_validate({})
    value = {"name": value} if isinstance(value, str) else value
    if isinstance(value, ModelConfig):
        return value
    if not isinstance(value, dict) or "name" not in value:
        problems.append(f"{place}: needs a name; choose one of {', '.join(CONFIGS)}.")
        return stand_in
    if not isinstance(value["name"], str) or not is_model(value["name"]):
        problems.append(f"{place}.name: {value['name']!r} is not a model{_nearest(str(value['name']), CONFIGS)}.")
        return stand_in
    schema = config_class(value["name"])
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        problems += _describe(error, schema, f"{place}.")
        return stand_in


def _describe(error: ValidationError, schema: type[BaseModel], prefix: str) -> list[str]:
    """One sentence for each mistake that pydantic found."""
    problems = []
    for mistake in error.errors():
        path = [str(part) for part in mistake["loc"]]
        place = prefix + ".".join(path)
        if mistake["type"] == "extra_forbidden":
            names = _fields_at(schema, path[:-1])
            problems.append(f"{place}: unknown key{_nearest(path[-1], names)}.")
        elif mistake["type"] == "missing":
            problems.append(f"{place}: missing, but required.")
        else:
            message = MESSAGES.get(mistake["type"]) or mistake["msg"].removeprefix("Value error, ")
            received = shortened(repr(mistake["input"]), LONGEST_INPUT)
            problems.append(f"{place.rstrip('.') or 'config'}: {message} (received {received}).")
    return problems


def _fields_at(schema: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = schema.model_fields.get(part)
        inner = getattr(field, "annotation", None)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        schema = inner
    return list(schema.model_fields)


def _nearest(name: str, names: Any) -> str:
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else f"; allowed: {', '.join(names)}"
