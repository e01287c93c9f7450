"""The Python API: prepared datasets, runs and labels, for scripts and notebooks, by the code of the command line."""

import html
import re
import signal
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from csrec_dist import labels as soft_labels
from csrec_dist import models, recommend
from csrec_dist.config import Config, parse_config, parse_section, read_yaml, with_launchers_file
from csrec_dist.data import dataset as prepared
from csrec_dist.data.append import appended_options
from csrec_dist.data.bad_rows import FILE as BAD_ROWS
from csrec_dist.data.card import dataset_card
from csrec_dist.data.columns import NONE, ROLES
from csrec_dist.data.dataset import LOG, without_places
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare_once
from csrec_dist.distributed.joining import processes
from csrec_dist.errors import UserError, quoted
from csrec_dist.files import write_record
from csrec_dist.hub.repositories import upload_with_card
from csrec_dist.runs.run import Run
from csrec_dist.training.telemetry import StageLog

OF_FILES = ("format", "header", "encoding", "separator", "valid_source", "test_source")
TO_COME = {"path": "the Dataset that fit is given"}
"""Stands for the dataset in the config of a run that has none yet."""


class Dataset(prepared.Dataset):
    """A prepared dataset: `Dataset.prepare` makes one from a log, `Dataset(folder)` opens it again.

    `num_items`, `num_users`, `window`, `splits` and `statistics` say what is in it; `stream` reads its rows.
    """

    @classmethod
    def prepare(
        cls,
        log: Any,
        folder: Path | str,
        *,
        user: str | int | None = None,
        item: str | int | None = None,
        rating: str | int | None = None,
        timestamp: str | int | None = None,
        true_item: str | int | None = None,
        **options: Any,
    ) -> Self:
        """Prepare a log into a new folder, or open the folder if it was prepared from this log with these options.

        What was read, which columns were taken and what was left out is printed. Ids keep their type: text that looks
        like a number stays text, unless it comes from a text file. Under a launcher the first rank prepares.

        Args:
            log: a table of pandas, polars, pyarrow or Hugging Face Datasets with a row for each interaction; or the
                path of a file or folder, or the name of a fetched log.
            folder: a new folder.
            user, item, rating, timestamp, true_item: names of columns, guessed where they are not given (those of
                RecTools, RePlay and RecBole are among the usual ones). "none" switches a role off; without timestamps
                the order of each user's rows is that in time.
            options: other keys of `dataset` in docs/configuration.md, such as window, min_interactions, split.

        Raises:
            UserError: an option or column is wrong (all are named), nothing is left of the log, or the folder has
                something else in it.

        >>> import polars as pl
        >>> log = pl.DataFrame({
        ...     "customer": [f"c{row // 6}" for row in range(60)],
        ...     "sku": [f"sku{row % 7}" for row in range(60)],
        ...     "time": range(60),
        ... })
        >>> data = Dataset.prepare(log, "data/sales", user="customer", item="sku", window=5)  # doctest: +ELLIPSIS
        prepare read the polars DataFrame: user: customer, item: sku, rating: none, timestamp: time, true_item: none
        ...
        >>> data
        Dataset(data/sales: 10 users, 7 items, windows of 5)
        """
        columns = {"user": user, "item": item, "rating": rating, "timestamp": timestamp, "true_item": true_item}
        given = {role: name for role, name in columns.items() if name is not None}
        with _arguments_named(), processes() as ranks:
            settings, table = _settings(log, given, options)
            ranks.on_main(lambda: _prepare_once(settings, Path(folder), table))
        return cls(folder)

    def append(
        self,
        log: Any,
        folder: Path | str,
        *,
        user: str | int | None = None,
        item: str | int | None = None,
        rating: str | int | None = None,
        timestamp: str | int | None = None,
        true_item: str | int | None = None,
        **options: Any,
    ) -> Self:
        """Prepare this dataset's log together with a new one into a new folder; this dataset stays as it is.

        Items and users keep their numbers, and new ones follow, also those that had too few interactions before. But
        for the numbers it is as if the whole log had been prepared at once. A folder that was made of this dataset and
        this log is opened. Under a launcher the first rank prepares.

        Args:
            log, folder: as for `prepare`.
            user, item, rating, timestamp, true_item, options: as for `prepare`; by default those of this dataset, with
                their columns where the new log has others.

        Raises:
            UserError: as `prepare`; the folder of this dataset has its log no more; or an option would leave out
                items or users that it has.

        >>> import pandas as pd
        >>> november = pd.DataFrame({"customer": ["c1", "c99"] * 3, "sku": ["sku1", "sku77"] * 3})
        >>> november["event_time"] = pd.date_range("2026-11-01", periods=6)
        >>> data.append(november, "data/shop_november")  # doctest: +ELLIPSIS
        prepare read the pandas DataFrame, appended to the log of data/shop: ...
        prepare new users: 1, new items: 1
        ...
        Dataset(data/shop_november: 21 users, 8 items, windows of 6)
        """
        columns = {"user": user, "item": item, "rating": rating, "timestamp": timestamp, "true_item": true_item}
        given = {role: name for role, name in columns.items() if name is not None}
        with _arguments_named(), processes() as ranks:
            keys = appended_options(self, options | {"columns": given}, is_table=not isinstance(log, str | Path))
            settings, table = _settings(log, {}, keys, "append")
            ranks.on_main(lambda: _prepare_once(settings, Path(folder), table, self))
        return type(self)(folder)

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None) -> str:
        """Put the dataset with a card into the repository `name` (OWNER/NAME) of the Hub; returns its address.

        `datasets.load_dataset(name)` reads the splits there. The raw ids of users and all their items go with it; the
        log that it was made of, rows that were left out of it, and places on this machine do not. Under a launcher the
        first rank pushes.

        Raises:
            UserError: the name is no name, the server cannot be reached, or it asks for another token.
        """

        def push() -> str:
            files = [self.file(name) for name in self.file_names if name not in (LOG, BAD_ROWS)]
            with TemporaryDirectory() as folder:
                write_record(info := Path(folder) / "dataset.json", without_places(self.info))
                return upload_with_card([info, *files], dataset_card(self), name, private, token)

        with processes() as ranks:
            return ranks.on_main(push)

    def __repr__(self) -> str:
        return f"Dataset({self.folder}: {self.num_users:,} users, {self.num_items:,} items, windows of {self.window})"

    def _repr_html_(self) -> str:
        rows = [(name, split.num_rows, split.num_examples) for name, split in self.splits.items()]
        return _html(repr(self), ("split", "rows", "examples"), [[name, f"{r:,}", f"{e:,}"] for name, r, e in rows])


def _settings(
    log: Any, columns: dict[str, str | int], options: dict[str, Any], method: str = "prepare"
) -> tuple[DatasetOptions, Any]:
    """The options of a log, and the log itself if it is a table."""
    columns = {**options.pop("columns", {}), **columns}
    opening = f"The call of Dataset.{method} has"
    if isinstance(log, str | Path):
        return parse_section(DatasetOptions, {**options, "source": str(log), "columns": columns}, opening), None
    if wrong := [name for name in OF_FILES if options.get(name) is not None]:
        raise UserError(f"{', '.join(wrong)}: this is for files, and a table was given; leave it out.")
    names = {role: name if name == NONE else str(name) for role, name in columns.items()}  # pandas has integers, too
    source = f"{type(log).__module__.partition('.')[0]}.{type(log).__name__}"
    return parse_section(DatasetOptions, {**options, "source": source, "columns": names}, opening), log


def _prepare_once(options: DatasetOptions, folder: Path, table: Any, extends: prepared.Dataset | None = None) -> None:
    """Prepare, unless it is done; in a notebook the same line is run again, and a script resumes."""
    with StageLog("prepare", None, show=True) as log:
        prepare_once(options, folder, lambda line: log.say(_in_python(line)), table, extends)


ARGUMENT = rf"(?<![\w/.-])dataset\.(?:columns\.)?({'|'.join([*ROLES, *DatasetOptions.model_fields])})\b"
"""A key of a config that is an argument of `Dataset.prepare`."""


@contextmanager
def _arguments_named() -> Iterator[None]:
    """Errors of the block name the arguments of Python."""
    try:
        yield
    except UserError as error:
        raise UserError(_in_python(str(error))) from None


def _in_python(text: str) -> str:
    """The keys of a config in a text as arguments: dataset.columns.user is user, `dataset.header: true` header=True."""
    text = re.sub(rf"{ARGUMENT}(?<!columns): (\w+)", _assignment, text)
    return re.sub(ARGUMENT, r"the argument \1", text)


def _assignment(key_and_value: re.Match[str]) -> str:
    """`name: value` of YAML as Python writes it."""
    name, value = key_and_value.groups()
    return f"{name}={value.capitalize() if value in ('true', 'false') else repr(value)}"


class CSRec:
    """A run: its config, and the folder `<output>/<name>` with its teachers, labels, student and metrics.

    The arguments are the keys of a run's YAML file (docs/configuration.md); the dataset may be left to `fit`. What a
    run leaves in its folder is the same as by `csrec-dist run`, and either goes on with what the other began.

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
        """UserError that names all that is wrong. Nothing is read or written before `fit`."""
        sections = {"dataset": dataset, "teachers": teachers, "labels": labels, "training": training}
        sections |= {"evaluation": evaluation, "distributed": distributed}
        keys = {"name": name, "model": model, "method": method, "seed": seed, "baseline": baseline}
        self._configure({**keys, "output": str(output), **sections})

    @classmethod
    def from_config(cls, config: Path | str | Mapping[str, Any]) -> Self:
        """The run of a YAML file, or of a dict with its keys; without `dataset`, `fit` is given one.

        >>> CSRec.from_config({"name": "narrow", "model": {"name": "sasrec", "width": 16}, "method": "softrec"})
        CSRec(runs/narrow: sasrec, softrec; not fitted)
        """
        return cls._of(read_yaml(config) if isinstance(config, str | Path) else config)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The run in a folder, finished or not; it may have been moved there. UserError when there is none.

        >>> CSRec.load("runs/shop").config.method
        'model_level'
        """
        run = Run.open(folder)
        place = run.folder if run.folder.name else run.folder.resolve()
        return cls._of(run.config.dump() | {"name": place.name, "output": str(place.parent)})

    @classmethod
    def _of(cls, keys: Mapping[str, Any]) -> Self:
        run = cls.__new__(cls)
        run._configure(keys)
        return run

    def _configure(self, keys: Mapping[str, Any]) -> None:
        given = {key: value for key, value in keys.items() if value is not None}
        self._has_dataset = "dataset" in given
        self.config: Config = parse_config(with_launchers_file({"dataset": TO_COME, **given}))

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._run.folder

    @property
    def _run(self) -> Run:
        """What is in the folder now."""
        return Run.of(self.config)

    def fit(
        self,
        data: prepared.Dataset | None = None,
        *,
        resume_from: "CSRec | Path | str | None" = None,
        restart: str | None = None,
    ) -> Self:
        """Do all stages of the run: teachers, soft labels, student, evaluation. Returns the run.

        Stages that are done are skipped, and one that was interrupted is resumed: call it again after Ctrl-C, a crash,
        or with raised limits. Under a launcher all ranks call it. Nothing global is left changed in the process, but
        that ranks stay joined.

        Args:
            data: a prepared dataset; the run's own if its config names one.
            resume_from: a finished run, or its folder or that of a model, from whose weights the student's training
                starts; the same as training.init_from. The items may be others: those with the same raw ids keep their
                vectors.
            restart: a stage to do again, with all that depend on it, such as "distill".

        Raises:
            UserError: there is no dataset, or the run was begun with other settings (the message names them).
            KeyboardInterrupt: after Ctrl-C, when the checkpoint is written.

        >>> run = CSRec("small", {"name": "gru4rec", "width": 8}, method="base", training={"max_epochs": 1})
        >>> run.fit(data)  # doctest: +ELLIPSIS
        prepare training, by the size of the log: batch_size ...
        distill epoch 1/1  loss ...
        evaluate student: test recall@10 ...
        CSRec(runs/small: gru4rec, base; test NDCG@10 ...)
        """
        if data is not None:
            if not isinstance(data, prepared.Dataset):
                raise UserError(f"fit takes a Dataset, not {quoted(data)}: Dataset.prepare makes one from a log.")
            path = data.folder.resolve()  # the run is read from other working folders, too
            self.config = self.config.model_copy(update={"dataset": DatasetOptions(path=str(path))})
            self._has_dataset = True
        if resume_from is not None:
            start = resume_from.folder if isinstance(resume_from, CSRec) else Path(resume_from)
            training = self.config.training.model_copy(update={"init_from": str(start.resolve())})
            self.config = self.config.model_copy(update={"training": training})
        if not self._has_dataset:
            raise UserError("There is nothing to fit: give fit a Dataset, which Dataset.prepare makes from a log.")
        self._execute(None, restart)
        return self

    def evaluate(self, **options: Any) -> dict[str, Any]:
        """Evaluate the run's models again with other keys of `evaluation`, such as top_n=[1, 50]; its metrics.

        Raises:
            UserError: an option is wrong or decides the training too (exclude_seen), or the run is not trained.

        >>> metrics = run.evaluate(top_n=[1, 3])  # doctest: +ELLIPSIS
        evaluate student: test recall@10 ...
        >>> sorted(name for name in metrics["test"] if name.startswith("recall"))
        ['recall@1', 'recall@10', 'recall@3']
        """
        values = self.config.dump()
        self.config = parse_config(values | {"evaluation": values["evaluation"] | options})
        self._execute(["evaluate"], None)
        return self.metrics

    def _execute(self, stages: Sequence[str] | None, restart: str | None) -> None:
        from csrec_dist.runs.pipeline import execute

        options, precision = self.config.distributed, self.config.training.precision
        with processes(options.timeout_minutes, options.engine, precision, computes=True) as ranks:
            try:
                execute(self.config, ranks, stages, restart)
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
            return Path(ranks.on_main(lambda: str(write_report(self.folder))))

    @property
    def teachers(self) -> dict[str, "models.SequentialModel"]:
        """The trained members of the teacher module by name, in evaluation mode.

        >>> logits = run.teachers["teacher-0"].score([[3, 1, 2]])  # item numbers; column 0 is no item
        >>> logits.shape == (1, 1 + run.teachers["teacher-0"].num_items)
        True
        """
        run = self._run
        if self.config.num_members:
            run.require("teach")
        return {name: models.load(run.folder / "teachers" / name) for name in self.config.member_names}

    @property
    def labels(self) -> "soft_labels.LabelCache":
        """The soft labels that the student learnt from; UserError for a method that stores none.

        >>> run.labels.num_examples == data.splits["train"].num_examples
        True
        """
        if not self.config.num_members:
            raise UserError(f"A run of method {self.config.method} stores no soft labels.")
        return load_labels(self.folder)

    @property
    def recommender(self) -> "recommend.Recommender":
        """The student with the raw ids of users and items.

        >>> run.recommender.recommend(users=["c3"], top_n=2)["rank"].tolist()
        [1, 2]
        """
        return recommend.Recommender.of_run(self.folder)

    def __repr__(self) -> str:
        metrics = self._run.metrics.get("test", {})
        state = f"test NDCG@10 {metrics['ndcg@10']:.4f}" if metrics else "not fitted"
        return f"CSRec({self.folder}: {self.config.model.name}, {self.config.method}; {state})"

    def _repr_html_(self) -> str:
        names = ("recall@10", "ndcg@10")
        results = self._run.results if self._run.metrics else []
        rows = [
            [row.title, *(f"{row.test[name]:.4f}" if name in row.test else "–" for name in names)] for row in results
        ]
        return _html(repr(self), ("model", "Recall@10", "NDCG@10"), rows)


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
    inner = Path(folder) / "labels"
    return soft_labels.LabelCache(inner if inner.is_dir() else folder)


def _html(title: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A titled table as Jupyter shows it."""
    lines = [_row("th", header), *(_row("td", row) for row in rows)]
    return f"<table><caption>{html.escape(title)}</caption>{''.join(lines)}</table>"


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
