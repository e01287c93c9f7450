"""The schema of a run's configuration: sections, keys, defaults, limits, and which combinations are impossible."""

from typing import Annotated, Any

import yaml
from pydantic import Field, SerializeAsAny, field_validator

from csrec_dist.data.options import DatasetOptions
from csrec_dist.distributed.options import DistributedOptions
from csrec_dist.evaluation.options import EvaluationOptions
from csrec_dist.files import fingerprint
from csrec_dist.labels.options import LabelOptions, combining_problem
from csrec_dist.models.options import ModelConfig, SASRecConfig
from csrec_dist.options import MEMBERS, NOTHING, Options, decides
from csrec_dist.teachers import METHODS, TeacherModule, TeacherOptions
from csrec_dist.training.options import DISTILLATION, TrainingOptions

STUDENT = decides("distill", "baseline")


class Config(Options):
    """A whole run; `runs/<name>` is its folder."""

    name: Annotated[str, NOTHING] = Field(
        min_length=1, max_length=100, pattern=r"^\w[\w.\-]*$", description="Name of the run and of its folder."
    )
    seed: Annotated[int, STUDENT, decides("teach", through=MEMBERS)] = Field(
        0, ge=0, lt=2**31, strict=True, description="Seed of the student; members have their own seeds."
    )
    output: Annotated[str, NOTHING] = Field("runs", description="Folder of all runs.")
    dataset: Annotated[DatasetOptions, decides("prepare")]
    model: Annotated[SerializeAsAny[ModelConfig], STUDENT, decides("teach", through=MEMBERS)] = Field(
        SASRecConfig(), description="Model of the student, with its options, or its name alone."
    )
    method: Annotated[str, DISTILLATION, decides("teach", through=MEMBERS)] = Field(
        "model_level", description="Method that makes the soft labels; base: no soft labels."
    )
    baseline: Annotated[bool, decides("evaluate", through="models")] = Field(
        False, description="Also train the student on one-hot labels alone, for comparison."
    )
    teachers: TeacherOptions = TeacherOptions()
    labels: LabelOptions = LabelOptions()
    training: TrainingOptions = TrainingOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    distributed: Annotated[DistributedOptions, NOTHING] = DistributedOptions()

    @field_validator("method")
    @classmethod
    def _method_is_known(cls, name: str) -> str:
        if name not in ("base", *METHODS):
            raise ValueError(f"choose one of {', '.join(['base', *METHODS])}")
        return name

    @property
    def teacher_models(self) -> list[ModelConfig]:
        """The model of each member that is trained."""
        given = self.teachers.model or self.model
        return list(given) if isinstance(given, list) else [given] * self.num_members

    @property
    def num_members(self) -> int:
        """Members of the teacher module that are trained."""
        if self.method == "base":
            return 0
        fixed = METHODS[self.method].num_members
        return self.teachers.num if fixed is None else fixed

    @property
    def module(self) -> TeacherModule:
        """The members of the teacher module, as they would be trained; none for method base."""
        if self.method == "base":
            return TeacherModule((), ())
        seed = self.seed if self.teachers.seed is None else self.teachers.seed
        return METHODS[self.method].make(self.teacher_models, seed, self.teachers.sample)

    @property
    def member_names(self) -> list[str]:
        """The members' folders under teachers/, in order."""
        return self._pretrained_names or [member.name for member in self.module.members]

    @property
    def labelling_names(self) -> list[str]:
        """The members whose logits make the soft labels, in order."""
        return self._pretrained_names or list(self.module.labelling)

    @property
    def _pretrained_names(self) -> list[str]:
        return [f"teacher-{k}" for k in range(len(self.teachers.pretrained))]

    def dump(self) -> dict[str, Any]:
        """The resolved configuration as plain values."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved configuration as YAML, opened by its hash."""
        values = self.dump()
        body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        return f"# hash: {fingerprint(values)}\n{body}"


def impossible(config: Config) -> list[str]:
    """The impossible combinations in a configuration, a sentence each."""
    problems = []
    teachers, labels = config.teachers, config.labels
    has_members = config.num_members > 0
    if teachers.pretrained and not has_members:
        problems.append(f"teachers.pretrained: method {config.method} has no members; remove this key.")
    if teachers.pretrained and len(teachers.pretrained) != teachers.num:
        problems.append(
            f"teachers.num: {teachers.num}, but teachers.pretrained lists {len(teachers.pretrained)} members; make "
            "them agree."
        )
    if teachers.pretrained and teachers.model is not None:
        problems.append("teachers.model: pretrained members have their own models; remove this key.")
    if teachers.trust_item_order and not teachers.pretrained:
        problems.append("teachers.trust_item_order: there are no pretrained members; remove this key.")
    if isinstance(teachers.model, list) and len(teachers.model) != config.num_members:
        problems.append(f"teachers.model: lists {len(teachers.model)} models for {config.num_members} members.")
    if has_members and not teachers.pretrained and teachers.num != config.num_members:
        problems.append(
            f"teachers.num: method {config.method} always has {config.num_members} members; remove this key."
        )
    if config.baseline and config.method == "base":
        problems.append("baseline: method base is already the baseline; remove this key.")
    if labels.form != "factored" and not has_members:
        problems.append(f"labels.form: method {config.method} stores no labels; remove this key.")
    if labels.form == "topk" and config.training.kl != "forward":
        problems.append(
            f"labels.form: topk stores only some items of a row, and training.kl {config.training.kl} is infinite on "
            "the others; set training.kl to forward, or labels.form to factored."
        )
    if config.distributed.catalog_parallel > 1:
        problems += _impossible_in_slices(config)
    contrasted = [model.name for model in (config.model, *config.teacher_models) if hasattr(model, "contrast_weight")]
    if contrasted and config.training.accumulate > 1:
        problems.append(
            f"training.accumulate: {contrasted[0]} contrasts the windows of a whole batch, which micro-batches would "
            "split; set it to 1."
        )
    problems += impossible_engine(config.distributed)
    if not problems and has_members:
        problems += _impossible_combination(config)
    return problems


def _impossible_in_slices(config: Config) -> list[str]:
    problems = []
    if config.labels.form == "dense":
        problems.append(
            "labels.form: dense needs whole rows of logits, which ranks that share a catalog do not have; set "
            "labels.form to factored or topk, or distributed.catalog_parallel to 1."
        )
    if config.labels.weights == "fitted":
        problems.append(
            "labels.weights: fitted needs whole item tables, which ranks that share a catalog do not have; give the "
            "weights, or set distributed.catalog_parallel to 1."
        )
    return problems


def impossible_engine(options: DistributedOptions) -> list[str]:
    """The settings that the engine does not support, a sentence each."""
    problems = []
    engine, catalog_parallel = options.engine, int(options.catalog_parallel)
    if engine == "deepspeed" and options.deepspeed is None:
        problems.append(
            "distributed.deepspeed: engine deepspeed needs a file, such as `csrec-dist init zero2` writes, or the "
            "launcher's --deepspeed_config_file."
        )
    if engine != "deepspeed" and options.deepspeed is not None:
        problems.append(
            f"distributed.deepspeed: engine {engine} does not read it; remove this key, or set distributed.engine to "
            "deepspeed."
        )
    if engine == "deepspeed" and catalog_parallel > 1:
        problems.append(
            "distributed.catalog_parallel: engine deepspeed deals out every tensor over all ranks as copies of one, "
            f"and slices of a table are different tensors; use engine fsdp or ddp with {catalog_parallel}, or "
            "catalog_parallel 1 with engine deepspeed."
        )
    return problems


def _impossible_combination(config: Config) -> list[str]:
    labels = config.labels
    if labels.weights == "fitted":
        fits = labels.combine == "weighted"
        return [] if fits else [f"labels.weights: fitted requires labels.combine weighted, not {labels.combine}."]
    form = "factored" if labels.form == "auto" else labels.form
    problem = combining_problem(labels.combine, labels.weights, len(config.labelling_names), form)
    return [f"labels: {problem}"] if problem else []
