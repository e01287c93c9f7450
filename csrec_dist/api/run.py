"""A run as Python code makes it: its config by keyword arguments, its stages, and what they left in its folder."""

import signal
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from csrec_dist import labels as soft_labels
from csrec_dist import models, recommend
from csrec_dist.api.dataset import html_table
from csrec_dist.api.words import said_in_python
from csrec_dist.config import Config, is_resolved, parse_config, read_yaml, with_launchers_file
from csrec_dist.data import dataset as prepared
from csrec_dist.data.options import DatasetOptions
from csrec_dist.distributed.joining import processes
from csrec_dist.errors import UserError, did_you_mean
from csrec_dist.lazy import load
from csrec_dist.options import STAGES
from csrec_dist.runs.inputs import models_differ
from csrec_dist.runs.run import ResultRow, Run

NO_DATASET_YET = {"path": "the Dataset that fit is given"}
"""Stands for the dataset in the config of a run that has none yet."""


class CSRec:
    """A run: its config, and the folder `<output>/<name>` with its teachers, labels, student and metrics.

    The arguments are the keys of a run's YAML file (docs/configuration.md); the dataset may be left to `fit`. What a
    run leaves in its folder is the same as by `csrec-dist run`, and either resumes what the other began.

    >>> CSRec("new", "gru4rec", teachers={"num": 2}, training={"max_epochs": 5, "beta": 0.5}, output="runs")
    CSRec(runs/new: gru4rec, model_level; not fitted)
    """

    def __init__(
        self,
        name: str,
        model: str | Mapping[str, Any] = "sasrec",
        method: str = "model_level",
        *,
        seed: int = 0,
        output: Path | str = "runs",
        baseline: bool = False,
        dataset: Mapping[str, Any] | None = None,
        teachers: Mapping[str, Any] | None = None,
        labels: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        distributed: Mapping[str, Any] | None = None,
    ) -> None:
        """UserError that names everything that is wrong. Nothing is read or written before `fit`."""
        sections = {"dataset": dataset, "teachers": teachers, "labels": labels, "training": training}
        sections |= {"evaluation": evaluation, "distributed": distributed}
        keys = {"name": name, "model": model, "method": method, "seed": seed, "baseline": baseline}
        self._configure({**keys, "output": str(output), **sections})

    @classmethod
    def from_config(cls, config: Path | str | Mapping[str, Any] | Config) -> Self:
        """The run of a YAML file, of a dict with its keys, or of another run's `config`; without `dataset`, `fit` is
        given one.

        >>> CSRec.from_config({"name": "narrow", "model": {"name": "sasrec", "width": 16}, "method": "softrec"})
        CSRec(runs/narrow: sasrec, softrec; not fitted)
        """
        if isinstance(config, Config):
            return cls._of(config.dump())
        return cls._of(read_yaml(config) if isinstance(config, str | Path) else config)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The run in a folder, finished or not; it may have been moved there. UserError when there is none.

        >>> CSRec.load("runs/shop").config.method
        'model_level'
        """
        run = Run.open(folder)
        path = run.folder if run.folder.name else run.folder.resolve()  # "." has no name
        return cls._of(run.config.dump() | {"name": path.name, "output": str(path.parent)})

    @classmethod
    def _of(cls, keys: Mapping[str, Any]) -> Self:
        run = cls.__new__(cls)
        run._configure(keys)
        return run

    def _configure(self, keys: Mapping[str, Any]) -> None:
        if isinstance(keys.get("dataset"), str | Path | prepared.Dataset):
            raise UserError(
                "dataset takes the keys of that section, such as {'source': 'clicks.csv'}. A prepared Dataset is given "
                "to fit, or named here as {'path': 'data/shop'}."
            )
        present = {key: value for key, value in keys.items() if value is not None}
        self._has_dataset = "dataset" in present
        self.config: Config = parse_config(with_launchers_file({"dataset": NO_DATASET_YET, **present}))

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Run.of(self.config).folder

    @property
    def _run(self) -> Run:
        """The folder as it is now: opened anew, as a `Run` caches what it has read.

        UserError where the run in it has other settings: its results would be taken for those of this object's.
        """
        if differing := self._differing():
            raise UserError(
                f"{self.folder} has a run of other settings: {'; '.join(differing)}. Give this one another name, or "
                f"open what is there: CSRec.load({str(self.folder)!r})."
            )
        return Run.of(self.config)

    def _differing(self) -> list[str]:
        """How what decides the models of the run in the folder differs from this object's settings."""
        if not is_resolved(self.folder / "config.yaml"):
            return []
        there = Run.open(self.folder).resolved
        mine = Run(self.folder, self.config.model_copy(update={"dataset": there.dataset})).resolved
        if not (mine.training.is_resolved and there.training.is_resolved):
            return []  # the dataset, whose size decides, is not there (yet)
        return models_differ(there, mine)

    def fit(
        self,
        data: prepared.Dataset | None = None,
        *,
        resume_from: "CSRec | Path | str | None" = None,
        restart: str | None = None,
    ) -> Self:
        """Do all stages of the run: teachers, soft labels, student, evaluation. Returns the run.

        Finished stages are skipped and interrupted ones resume: call it again after Ctrl-C, a crash, or with raised
        limits. Under a launcher all ranks call it. Nothing global is left changed in the process, except that ranks
        stay joined.

        Args:
            data: a prepared dataset; the run's own if its config names one.
            resume_from: a finished run, or its folder or that of a model, from whose weights the student's training
                starts; the same as training.init_from. The items may be others: those with the same raw ids keep their
                vectors.
            restart: a stage to do again, with all that depend on it, such as "distill".

        Raises:
            UserError: there is no dataset, or two; or the run was begun with other settings (the message names them).
            KeyboardInterrupt: after Ctrl-C, when the checkpoint is written.

        >>> run = CSRec("small", {"name": "gru4rec", "width": 8}, method="base", training={"max_epochs": 1})
        >>> run.fit(data)  # doctest: +ELLIPSIS
        prepare training, by the size of the log: batch_size ...
        distill epoch 1/1  loss ...
        evaluate student: test recall@10 ...
        CSRec(runs/small: gru4rec, base; test NDCG@10 ...)
        """
        config = self.config
        if data is not None:
            self._require_no_other(data)
            path = data.folder.resolve()  # the run may be read from other working folders
            config = config.model_copy(update={"dataset": DatasetOptions(path=str(path))})
        elif not self._has_dataset:
            raise UserError("There is nothing to fit: give fit a Dataset, which Dataset.prepare makes from a log.")
        if resume_from is not None:
            start = resume_from.folder if isinstance(resume_from, CSRec) else Path(resume_from)
            training = config.training.model_copy(update={"init_from": str(start.resolve())})
            config = config.model_copy(update={"training": training})
        if restart is not None and restart not in STAGES:
            raise UserError(
                f"restart takes the name of a stage ({', '.join(STAGES)}), not {restart!r}"
                f"{did_you_mean(str(restart), STAGES)}."
            )
        self._execute(config, None, restart)
        return self

    def _require_no_other(self, data: prepared.Dataset) -> None:
        """UserError unless it is a dataset, and the config names no other one; one that was moved is the same."""
        if not isinstance(data, prepared.Dataset):
            raise UserError(f"fit takes a Dataset, not a {type(data).__name__}: Dataset.prepare makes one from a log.")
        own = self.config.dataset if self._has_dataset else DatasetOptions(path=str(data.folder))
        other = own.source or (own.path if (Path(own.path or "") / "dataset.json").exists() else None)
        if own.source or (other and prepared.Dataset(other).fingerprint != data.fingerprint):
            raise UserError(
                f"The run's config names a dataset of its own ({other}), and fit was given {data.folder}: give one of "
                "both."
            )

    def evaluate(self, **options: Any) -> dict[str, Any]:
        """Evaluate the run's models again with other keys of `evaluation`, such as top_n=[1, 50]; its metrics.

        Raises:
            UserError: an option is wrong or decides the training too (exclude_seen, matmul_precision), or the run is
                not trained.

        >>> metrics = run.evaluate(top_n=[1, 3])  # doctest: +ELLIPSIS
        evaluate student: test recall@10 ...
        >>> sorted(name for name in metrics["test"] if name.startswith("recall"))
        ['recall@1', 'recall@10', 'recall@3']
        """
        with said_in_python():
            self._run.require("distill")
        there = type(self).load(self.folder).config.dump()
        values = there | {"distributed": self.config.distributed, "evaluation": there["evaluation"] | options}
        self._execute(parse_config(values), ["evaluate"], None)
        return self.metrics

    def _execute(self, config: Config, stages: Sequence[str] | None, restart: str | None) -> None:
        """Do stages with a config, which is the run's from then on, unless it is refused."""
        execute = load("csrec_dist.runs.pipeline").execute
        load("accelerate")
        options, precision, before = config.distributed, config.training.precision, (self.config, self._has_dataset)
        self.config, self._has_dataset = config, True
        computing = processes(options.timeout_minutes, options.engine, precision, computes=True)
        with said_in_python(), computing as ranks:
            try:
                execute(config, ranks, stages, restart)
            except UserError:
                self.config, self._has_dataset = before
                raise
            except SystemExit as stopped:  # by a signal, after a checkpoint
                if stopped.code == 128 + signal.SIGINT:
                    raise KeyboardInterrupt from None
                raise

    @property
    def metrics(self) -> dict[str, Any]:
        """The student's metrics, `test` and `valid`, and those of all models in `models`: metrics.json.

        Raises UserError before the run is evaluated.

        >>> sorted(run.metrics["models"])
        ['student', 'teacher-0', 'teacher-1', 'teachers']
        >>> 0 <= run.metrics["test"]["ndcg@10"] <= 1
        True
        """
        if not (metrics := self._run.metrics):
            raise UserError(f"The run in {self.folder} has no metrics yet; call fit first.")
        return metrics

    def report(self) -> Path:
        """Write the run's report, finished or not: one HTML page, whose path is returned. The first rank writes it.

        >>> print(run.report())
        runs/shop/report/report.html
        """
        from csrec_dist.report import write_report

        with warnings.catch_warnings(), processes() as ranks:  # scipy adds filters when it is imported
            return Path(ranks.on_main(lambda: str(write_report(self._run.folder))))

    @property
    def teachers(self) -> dict[str, "models.SequentialModel"]:
        """The trained members of the teacher module by name, in evaluation mode.

        >>> logits = run.teachers["teacher-0"].score([[3, 1, 2]])  # item numbers; column 0 is no item
        >>> logits.shape == (1, 1 + run.teachers["teacher-0"].num_items)
        True
        """
        run = self._run
        with said_in_python():
            if self.config.num_members:
                run.require("teach")
        return {name: models.load(run.folder / "teachers" / name) for name in self.config.member_names}

    @property
    def student(self) -> "models.SequentialModel":
        """The trained student, in evaluation mode; `recommender` has it with the raw ids.

        >>> run.student.num_items == data.num_items
        True
        """
        with said_in_python():
            self._run.require("distill")
        return models.load(self.folder / "student")

    @property
    def labels(self) -> "soft_labels.LabelCache":
        """The soft labels that the student was trained on; UserError for a method that stores none.

        >>> run.labels.num_examples == data.splits["train"].num_examples
        True
        """
        folder = self._run.folder
        if not self.config.num_members:
            raise UserError(f"A run of method {self.config.method} stores no soft labels.")
        return load_labels(folder)

    @property
    def recommender(self) -> "recommend.Recommender":
        """The student with the raw ids of users and items.

        >>> run.recommender.recommend(users=["c3"], top_n=2)["rank"].tolist()
        [1, 2]
        """
        with said_in_python():
            self._run.require("distill")
            return recommend.Recommender.of_run(self.folder)

    def __repr__(self) -> str:
        try:
            is_other = bool(self._differing())
            metrics = {} if is_other else self._run.metrics.get("test", {})
            state = f"test NDCG@10 {metrics['ndcg@10']:.4f}" if metrics else "not fitted"
            state += ", and its folder has a run of other settings" if is_other else ""
        except UserError:
            state = "its folder is damaged"  # the other calls say how
        return f"CSRec({self.folder}: {self.config.model.name}, {self.config.method}; {state})"

    def _repr_html_(self) -> str:
        names = ("recall@10", "ndcg@10")
        results: list[ResultRow] = []
        with suppress(UserError):  # said when the run is asked for more
            results = self._run.results if self._run.metrics else []
        rows = [[r.title, *(f"{r.test[name]:.4f}" if name in r.test else "–" for name in names)] for r in results]
        return html_table(repr(self), ("model", "Recall@10", "NDCG@10"), rows)


def load_labels(folder: Path | str) -> "soft_labels.LabelCache":
    """The soft labels in a folder of labels, or of a run; `rows(example_ids)` gives those of some examples.

    An example's id is that of its row in the dataset: docs/data.md shows how batches carry them. Raises UserError when
    there are none, or files are missing.

    >>> import torch
    >>> from csrec_dist import soft_label_loss
    >>> labels = load_labels("runs/shop").rows([5, 0, 3])
    >>> states, item_weight = torch.randn(3, 8), torch.randn(labels.num_items, 8, requires_grad=True)
    >>> loss, count = soft_label_loss(states, item_weight, torch.tensor([1, 2, 3]), labels, temperature=3.0, beta=0.5)
    >>> (loss / count).backward()
    >>> item_weight.grad.shape == item_weight.shape
    True
    """
    of_run = Path(folder) / "labels"
    return soft_labels.LabelCache(of_run if of_run.is_dir() else folder)
