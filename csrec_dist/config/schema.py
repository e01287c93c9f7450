"""The schema of a run's configuration: its sections, their keys, defaults and limits, and what must fit together."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from csrec_dist.data.options import DatasetOptions
from csrec_dist.files import fingerprint
from csrec_dist.labels.combine import Combine, combining_problem
from csrec_dist.losses import DIVERGENCES
from csrec_dist.models import ModelConfig
from csrec_dist.teachers import METHODS, Plan, TeacherModule


class Section(BaseModel):
    """A part of the configuration: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


class TeacherOptions(Section):
    """`teachers`: the members to train, or trained ones to take."""

    num: int = Field(2, ge=1, le=8, strict=True, description="members m of the teacher module (Alg. 1 and 2)")
    model: SerializeAsAny[ModelConfig] | list[SerializeAsAny[ModelConfig]] | None = Field(
        None, description="their model, or a list with one for each (training_level: side, main); null: the student's"
    )
    pretrained: list[str] = Field([], description="folders of trained models to use as members instead of training")
    trust_item_order: bool = Field(
        False,
        description="take pretrained members whose folder does not say that they were trained on the items of this "
        "dataset: you vouch that row i + 1 of their item table is item i + 1 of items.parquet",
    )
    seed: int | None = Field(
        None, ge=0, lt=2**31, strict=True, description="seed that the members' seeds follow; null: the run's"
    )
    sample: float = Field(
        0.8, gt=0, le=1, description="p: share of the windows that a data-level member or the side teacher sees"
    )
    alpha: float = Field(0.5, ge=0, le=1, description="α of Eq. 17: share of KL(g₂‖g₁); 1−α is that of KL(g₁‖g₂)")
    expectation: bool = Field(True, description="whether Eq. 17 has its last term, the noise matrix's expectation")
    noise_rank: int = Field(64, ge=1, strict=True, description="rank of the noise matrix M·N of Eq. 11")
    noise_maximum: Literal["exact", "norm"] = Field(
        "exact", description="max_k of Eq. 17: looked for among all items, or a bound by norms for large catalogs"
    )
    noise_refresh: int = Field(
        10, ge=1, strict=True, description="steps from one search of the exact maxima to the next"
    )

    @model_validator(mode="before")
    @classmethod
    def _count_pretrained(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("pretrained"), list) and values["pretrained"]:
            return {"num": len(values["pretrained"])} | values
        return values


class LabelOptions(Section):
    """`labels`: how soft labels are combined and kept."""

    form: Literal["factored", "dense", "topk", "auto"] = Field(
        "factored",
        description="states and item tables, whole rows of logits, or the largest logits; auto: see tolerance",
    )
    combine: Combine = Field(
        "logit_mean", description="mean logits (Alg. 1, line 7), weighted logits, or mean probabilities"
    )
    weights: list[float] | Literal["fitted"] | None = Field(
        None, description="the members' weights for weighted and prob_mean; fitted: on validation, for weighted"
    )
    keep: int = Field(256, ge=1, strict=True, description="K, logits kept of an example in form topk")
    dtype: Literal["float32", "float16", "bfloat16", "auto"] = Field(
        "float16", description="number format of what is kept of an example; auto: see tolerance"
    )
    tolerance: float = Field(
        1e-3, ge=0, description="nats that the fewest bytes chosen by auto may cost, measured at the student's T and kl"
    )
    stage_to: str | None = Field(
        None,
        min_length=1,
        description="folder on each node's own disk, to which the labels that it reads are copied before distillation",
    )


class LoopOptions(Section):
    """How long and how fast to train; shared by teachers and students."""

    batch_size: int = Field(256, ge=1, strict=True, description="windows in a global batch, over all processes")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Adam's learning rate, at its largest")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="how the learning rate falls from there to 0 at the last step of max_epochs (or max_steps)",
    )
    warmup_steps: int = Field(
        0, ge=0, strict=True, description="steps over which the learning rate rises to it at first"
    )
    max_epochs: int = Field(100, ge=1, strict=True, description="passes over the training rows at most")
    patience: int = Field(
        10, ge=1, strict=True, description="epochs without a better validation NDCG@10 before stopping"
    )
    max_steps: int | None = Field(None, ge=1, strict=True, description="steps at most, for trials; null: no limit")
    accumulate: int = Field(
        1, ge=1, strict=True, description="micro-batches that a process cuts its share of a batch into, to save memory"
    )
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient of a step; null: no limit")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="number format of the model's own arithmetic in training; weights and losses are fp32"
    )
    log_steps: int = Field(50, ge=1, strict=True, description="steps between two points of the loss curve")


class CheckpointOptions(Section):
    """When a training writes down where it stands; this decides no result. The end of an epoch always does."""

    checkpoint_steps: int | None = Field(
        None, ge=1, strict=True, description="steps between two checkpoints within an epoch; null: by minutes alone"
    )
    checkpoint_minutes: float = Field(10, gt=0, le=1e6, description="minutes after which a checkpoint is due")
    keep_checkpoints: int = Field(2, ge=1, strict=True, description="checkpoints of a training that are kept")


class TrainingOptions(CheckpointOptions, LoopOptions):
    """`training`: the loop, its checkpoints, and the student's loss of Eq. 20."""

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
    min_rating: float = Field(
        4.0, description="δ: Recall⁺ and NDCG⁺ are of test targets rated at least δ, Recall⁻ and NDCG⁻ of those below"
    )
    lists: bool = Field(True, description="coverage, Gini index and average popularity of the top-n lists on test")
    calibration: bool = Field(True, description="expected calibration error of the models' probabilities on test")
    diversity: bool = Field(True, description="how much the teachers' lists and probabilities differ on test")


class DistributedOptions(Section):
    """`distributed`: engine and layout of the processes."""

    engine: Literal["ddp", "fsdp", "deepspeed"] = Field(
        "ddp", description="how the ranks of a model share its parameters, gradients and optimizer states"
    )
    deepspeed: str | None = Field(
        None,
        description="settings of engine deepspeed, a JSON file with the ZeRO stage; see configs/deepspeed; null: that "
        "of `accelerate launch --deepspeed_config_file`",
    )
    catalog_parallel: int = Field(
        1, ge=1, strict=True, description="ranks that share one item table, for catalogs beyond one device's memory"
    )
    export: Literal["plain", "sharded"] = Field(
        "plain",
        description="files of a model trained in slices: one model.safetensors, or one for each slice and an index",
    )
    reassign: bool = Field(
        True,
        description="ranks whose member is trained take the next one or join another's training; false: each member "
        "keeps its ranks, for runs that are equal bit by bit",
    )
    deterministic: bool = Field(
        True,
        description="sums are taken in the same order every time, for runs that are equal bit by bit; false: faster on "
        "some GPUs",
    )
    timeout_minutes: float = Field(
        30, gt=0, le=1e6, description="how long a rank waits for one that does not move before it gives up"
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
        return _one_of(name, ["base", *METHODS])

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output) / self.name

    @property
    def dataset_folder(self) -> Path:
        """The run's own dataset, or the shared one of `dataset.path`."""
        return Path(self.dataset.path) if self.dataset.path else self.folder / "dataset"

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
        return METHODS[self.method].make(Plan(self.teacher_models, seed, self.teachers.sample))

    @property
    def member_names(self) -> list[str]:
        """The members' folders under teachers/, in order."""
        return self._pretrained_names or [member.name for member in self.module.members]

    @property
    def labelling_names(self) -> list[str]:
        """The members whose logits make the soft labels, in order."""
        return self._pretrained_names or list(self.module.labelling)

    @property
    def label_settings(self) -> dict[str, Any]:
        """What decides the labels of given members: with the student's T and kl only where labels depend on them."""
        names, form = {"form", "combine", "weights", "dtype"}, self.labels.form
        is_auto = "auto" in (form, self.labels.dtype)
        names |= {"keep"} if form in ("topk", "auto") else set()
        names |= {"tolerance"} if is_auto else set()
        settings = self.labels.model_dump(mode="json", include=names)
        if is_auto or form == "topk":
            settings |= self.training.model_dump(include={"temperature", "kl"} if is_auto else {"temperature"})
        return settings

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


def _one_of(name: str, names: Iterable[str]) -> str:
    if name not in names:
        raise ValueError(f"choose one of {', '.join(names)}")
    return name


def impossible(config: Config) -> list[str]:
    """What in a configuration excludes something else in it."""
    problems = []
    teachers, labels = config.teachers, config.labels
    has_members = config.num_members > 0
    if teachers.pretrained and not has_members:
        problems.append(f"teachers.pretrained: method {config.method} has no members; leave it out.")
    if teachers.pretrained and len(teachers.pretrained) != teachers.num:
        problems.append(
            f"teachers.num: is {teachers.num}, but {len(teachers.pretrained)} pretrained members are given."
        )
    if teachers.pretrained and teachers.model is not None:
        problems.append("teachers.model: pretrained members bring their own model; leave it out.")
    if teachers.trust_item_order and not teachers.pretrained:
        problems.append("teachers.trust_item_order: there are no pretrained members to trust; leave it out.")
    if isinstance(teachers.model, list) and len(teachers.model) != config.num_members:
        problems.append(f"teachers.model: lists {len(teachers.model)} models for {config.num_members} members.")
    if has_members and not teachers.pretrained and teachers.num != config.num_members:
        problems.append(f"teachers.num: method {config.method} has {config.num_members} members; leave it out.")
    if config.baseline and config.method == "base":
        problems.append("baseline: method base already is the baseline; leave it out.")
    if labels.form != "factored" and not has_members:
        problems.append(f"labels.form: method {config.method} keeps no labels; leave it out.")
    if labels.form == "topk" and config.training.kl != "forward":
        problems.append(
            f"labels.form: topk keeps some items of a row, and training.kl {config.training.kl} is infinite on the "
            "others; choose training.kl forward, or labels.form factored."
        )
    if config.distributed.catalog_parallel > 1:
        problems += _impossible_in_slices(config)
    contrasted = [model.name for model in (config.model, *config.teacher_models) if hasattr(model, "contrast_weight")]
    if contrasted and config.training.accumulate > 1:
        problems.append(
            f"training.accumulate: {contrasted[0]} contrasts the windows of a whole batch, which micro-batches would "
            "cut apart; set it to 1."
        )
    problems += impossible_engine(config.distributed)
    if not problems and has_members:
        problems += _impossible_combination(config)
    return problems


def _impossible_in_slices(config: Config) -> list[str]:
    problems = []
    if config.labels.form == "dense":
        problems.append(
            "labels.form: dense needs whole rows of logits, which ranks that share a catalog do not have; choose "
            "factored or topk, or distributed.catalog_parallel 1."
        )
    if config.labels.weights == "fitted":
        problems.append(
            "labels.weights: fitted needs whole item tables, which ranks that share a catalog do not have; give the "
            "weights, or choose distributed.catalog_parallel 1."
        )
    return problems


def impossible_engine(options: DistributedOptions) -> list[str]:
    """What does not go with the engine."""
    problems = []
    engine, catalog_parallel = options.engine, int(options.catalog_parallel)
    if engine == "deepspeed" and options.deepspeed is None:
        problems.append(
            "distributed.deepspeed: engine deepspeed needs it, for example configs/deepspeed/zero2.json, or the "
            "launcher's --deepspeed_config_file."
        )
    if engine != "deepspeed" and options.deepspeed is not None:
        problems.append(
            f"distributed.deepspeed: engine {engine} does not read it; leave it out, or set distributed.engine to "
            "deepspeed."
        )
    if engine != "ddp" and catalog_parallel > 1:
        problems.append(
            f"distributed.catalog_parallel: engine {engine} shards whole tables itself and cannot train slices of "
            f"them; set engine ddp with {catalog_parallel}, or catalog_parallel 1 with engine {engine}."
        )
    return problems


def _impossible_combination(config: Config) -> list[str]:
    labels = config.labels
    if labels.weights == "fitted":
        fits = labels.combine == "weighted"
        return [] if fits else [f"labels.weights: fitted goes with combine weighted, not {labels.combine}."]
    form = "factored" if labels.form == "auto" else labels.form
    problem = combining_problem(labels.combine, labels.weights, len(config.labelling_names), form)
    return [f"labels: {problem}"] if problem else []
