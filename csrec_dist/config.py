"""The configuration of a run: read from YAML, overridden by --set, checked whole before any work."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from csrec_dist.data.options import DatasetOptions
from csrec_dist.errors import UserError
from csrec_dist.files import fingerprint
from csrec_dist.models import MODELS, ModelConfig, config_class
from csrec_dist.objectives import DIVERGENCES
from csrec_dist.teachers import STRATEGIES


class Section(BaseModel):
    """A part of the configuration: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


class TeacherOptions(Section):
    """`teachers`: the members to train, or trained ones to take."""

    num: int = Field(2, ge=1, le=8, strict=True, description="members m of the teacher module (Alg. 1)")
    model: SerializeAsAny[ModelConfig] | None = Field(None, description="their model; null: the student's")
    pretrained: list[str] = Field([], description="folders of trained models to use as members instead of training")

    @model_validator(mode="before")
    @classmethod
    def _count_pretrained(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("pretrained"), list) and values["pretrained"]:
            return {"num": len(values["pretrained"])} | values
        return values


class LabelOptions(Section):
    """`labels`: how soft labels are combined and kept."""

    form: Literal["factored", "dense"] = Field(
        "factored", description="states and item tables, or whole rows of logits"
    )
    combine: Literal["logit_mean"] = Field("logit_mean", description="how members are averaged (Alg. 1, line 7)")
    dtype: Literal["float32"] = Field("float32", description="number format of the cache")


class LoopOptions(Section):
    """How long and how fast to train; shared by teachers and students."""

    batch_size: int = Field(256, ge=1, strict=True, description="windows in a global batch, over all processes")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Adam's step size")
    max_epochs: int = Field(100, ge=1, strict=True, description="passes over the training rows at most")
    patience: int = Field(
        10, ge=1, strict=True, description="epochs without a better validation NDCG@10 before stopping"
    )
    max_steps: int | None = Field(None, ge=1, strict=True, description="steps at most, for trials; null: no limit")
    log_steps: int = Field(50, ge=1, strict=True, description="steps between two points of the loss curve")


class TrainingOptions(LoopOptions):
    """`training`: the loop, and the student's loss of Eq. 20."""

    temperature: float = Field(3.0, gt=0, description="T of Eq. 19, on the teacher only")
    beta: float = Field(0.5, ge=0, le=1, description="β of Eq. 20: share of the soft labels in the loss")
    kl: str = Field("reverse", description="reverse: KL(P_f ‖ r) of Eq. 20; forward: KL(r ‖ P_f)")

    @field_validator("kl")
    @classmethod
    def _kl_is_known(cls, name: str) -> str:
        return _one_of(name, DIVERGENCES)


class EvaluationOptions(Section):
    """`evaluation`: full-catalog ranking."""

    top_n: list[Annotated[int, Field(ge=1, strict=True)]] = Field(
        [5, 10, 20], min_length=1, description="cut-offs n of Recall@n, NDCG@n and MRR@n"
    )
    exclude_seen: bool = Field(False, description="never rank the items of the history")


class DistributedOptions(Section):
    """`distributed`: engine and layout of the processes."""

    engine: Literal["ddp"] = Field("ddp", description="how gradients are averaged over the ranks of a model")
    catalog_parallel: Literal[1] = Field(1, description="ranks that share one item table")
    timeout_minutes: float = Field(
        1440, gt=0, le=1e6, description="how long a rank waits for others before it gives up"
    )


class Config(Section):
    """A whole run; `runs/<name>` is its folder."""

    name: str = Field(min_length=1, pattern=r"^\w[\w.\-]*$", description="name of the run and of its folder")
    seed: int = Field(
        0, ge=0, lt=2**31, strict=True, description="seed of the student; members have seeds of their own"
    )
    output: str = Field("runs", description="folder of all runs")
    dataset: DatasetOptions
    model: SerializeAsAny[ModelConfig] = Field(description="the student")
    method: str = Field("model_level", description="how soft labels are made; base: none")
    baseline: bool = Field(False, description="also train the student on one-hot labels alone, to compare")
    teachers: TeacherOptions = TeacherOptions()
    labels: LabelOptions = LabelOptions()
    training: TrainingOptions = TrainingOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    distributed: DistributedOptions = DistributedOptions()

    @field_validator("method")
    @classmethod
    def _method_is_known(cls, name: str) -> str:
        return _one_of(name, ["base", *STRATEGIES])

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output) / self.name

    @property
    def dataset_folder(self) -> Path:
        """The run's own dataset, or the shared one of `dataset.path`."""
        return Path(self.dataset.path) if self.dataset.path else self.folder / "dataset"

    @property
    def teacher_model(self) -> ModelConfig:
        """The members' model."""
        return self.teachers.model or self.model

    def dump(self) -> dict[str, Any]:
        """The resolved configuration as plain values."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved configuration as YAML, opened by its hash."""
        values = self.dump()
        body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        return f"# hash: {fingerprint(values)}\n{body}"


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, and check everything.

    Raises:
        UserError: the file is missing or not YAML, or any keys or values are wrong (all are named at once).
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"The config file {path} does not exist.") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise UserError(f"The config file {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no mapping of sections; see configs/experiments for examples.")
    for override in overrides:
        _apply(raw, override)
    return parse_config(raw)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set takes section.key=value, not {override!r}.")
    *sections, last = key.strip().split(".")
    place = raw
    for section in sections:
        place[section] = {} if place.get(section) is None else place[section]
        place = place[section]
        if not isinstance(place, dict):
            raise UserError(f"--set {override}: {section} holds a value, not a section.")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML.") from None


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Check plain values against the schema; UserError that lists every mistake with the nearest right name."""
    values = {key: value for key, value in raw.items() if value is not None}
    problems: list[str] = []
    if "model" in values:
        values["model"] = _parse_model(values["model"], "model", problems)
    teachers = values.get("teachers")
    if isinstance(teachers, dict) and teachers.get("model") is not None:
        values["teachers"] = teachers | {"model": _parse_model(teachers["model"], "teachers.model", problems)}
    config = None
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems += _describe(error, Config, "")
    if config is not None:
        problems += _impossible(config)
    if problems or config is None:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"The configuration has {len(problems)} mistake{'s' * (len(problems) > 1)}:\n{listed}")
    return config


def _impossible(config: Config) -> list[str]:
    problems = []
    if config.teachers.pretrained and config.method == "base":
        problems.append("teachers.pretrained: method base has no teachers; choose another method or leave it out.")
    found = len(config.teachers.pretrained)
    if found not in (0, config.teachers.num):
        problems.append(f"teachers.num: is {config.teachers.num}, but {found} pretrained members are given.")
    if config.teachers.pretrained and config.teachers.model is not None:
        problems.append("teachers.model: pretrained members bring their own model; leave it out.")
    if config.baseline and config.method == "base":
        problems.append("baseline: method base already is the baseline; leave it out.")
    if config.labels.form == "dense" and config.method == "base":
        problems.append("labels.form: method base has no labels; leave it out.")
    return problems


def _parse_model(value: Any, place: str, problems: list[str]) -> ModelConfig | Any:
    """The model's own config; on a mistake any valid config stands in, so that the rest is checked too."""
    stand_in = next(iter(MODELS.values())).Config.model_validate({})
    if isinstance(value, ModelConfig):
        return value
    if not isinstance(value, dict) or "name" not in value:
        problems.append(f"{place}: needs a name, one of {', '.join(MODELS)}.")
        return stand_in
    if not isinstance(value["name"], str) or value["name"] not in MODELS:
        problems.append(f"{place}.name: {value['name']!r} is no model{_nearest(str(value['name']), MODELS)}.")
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
            problems.append(f"{place}: is required.")
        else:
            message = mistake["msg"].removeprefix("Value error, ")
            problems.append(f"{place.rstrip('.') or 'config'}: {message} (received {mistake['input']!r}).")
    return problems


def _fields_at(schema: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = schema.model_fields.get(part)
        inner = getattr(field, "annotation", None)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        schema = inner
    return list(schema.model_fields)


def _one_of(name: str, names: Iterable[str]) -> str:
    if name not in names:
        raise ValueError(f"choose one of {', '.join(names)}")
    return name


def _nearest(name: str, names: Any) -> str:
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else f"; allowed: {', '.join(names)}"
