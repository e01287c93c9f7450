"""The commented config that `init` writes for a log."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from csrec_dist.data.columns import ROLES
from csrec_dist.errors import listed
from csrec_dist.init.looking import Look
from csrec_dist.training.defaults import resolve
from csrec_dist.training.options import TrainingOptions

COMMENT_COLUMN = 34
NAMED_BY_FILE = ("delimited", "parquet", "json_lines", "inter")
"""Forms of logs whose columns have names of their own; those of others are known by the form."""
BY_SIZE = ("batch_size", "learning_rate", "warmup_steps", "max_epochs", "patience")

OPENING = """\
# What `csrec-dist init` makes of {source}. Check the columns, then:
#   csrec-dist run --config {file}      prepares, trains, evaluates and reports; give it again to resume
#   csrec-dist plan --config {file}     what that needs
# Keys that are left out have their defaults; docs/configuration.md has them all.
"""
MORE_DATASET = """\
  # windows: last                 # only the newest window of each user, instead of all that a sequence is cut into
  # split: temporal               # validate and test on what is newest in time, instead of each window's last items
  # num_shards: 64                # files of each split: at least as many as processes will train
"""
MODEL = """\
model:                            # of the student and of its teachers; or bert4rec, gru4rec, narm, nextitnet, …
  name: sasrec
  # width: 64                     # of states and item vectors
  # dropout: 0.3                  # a large log needs less of it
method: model_level               # soft labels of several teachers; or data_level, training_level, softrec, base
baseline: true                    # also trains the student without soft labels: did they help?
teachers:
  num: 2
"""
TRAINING = """\
training:
  # Left out, these five follow from the size of the log; here they will be:
"""
MORE_TRAINING = """\
  temperature: 3                  # of the soft labels
  beta: 0.5                       # their weight beside the one-hot labels
evaluation:
  top_n: [5, 10, 20]
  # exclude_seen: true            # do not rank what a history has already; for items that nobody takes twice
"""
LIKED = "targets that are rated lower than this are reported apart"


def config_text(look: Look, raw: Mapping[str, Any], file: str) -> str:
    """The YAML of a run on the log. `raw` are the keys that were given, `file` what the config will be called."""
    sections = [OPENING.format(source=look.options.source, file=file), f"name: {scalar(raw['name'])}\n"]
    sections += ["dataset:\n", *_dataset(look), MORE_DATASET, MODEL, TRAINING, *_training(look), MORE_TRAINING]
    if (rating := look.log.frame["rating"].median()) is not None:
        sections.append(f"  # {line('min_rating', rating, LIKED, indent=0, column=COMMENT_COLUMN - 4)}")
    return "".join(sections)


def scalar(value: Any) -> str:
    """A value as YAML writes it within a line."""
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=float("inf")).strip()[1:-1]


def line(key: str, value: Any, comment: str = "", indent: int = 2, column: int = COMMENT_COLUMN) -> str:
    """`key: value`, with a comment beside it, which begins at `column`."""
    text = f"{' ' * indent}{key}: {scalar(value)}"
    return f"{text:{column - 1}} # {comment}\n" if comment else f"{text}\n"


def _dataset(look: Look) -> Iterator[str]:
    """What was given, found or decided, a line each with its reason."""
    options = look.options.model_dump(mode="json", exclude_unset=True)
    num_files = len(look.source.files)
    files = f" in {num_files} files" if num_files > 1 else ""
    yield line("source", options.pop("source"), f"read as {look.source.format}{files}")
    yield from _columns(look, options.pop("columns", {}))
    for key, value in options.items():
        yield line(key, value, look.reasons.get(key, "as it was given"))


def _columns(look: Look, given: Mapping[str, Any]) -> Iterator[str]:
    """The column of each role. Those that all files of a form have are told, and not written."""
    of_names = look.source.format in NAMED_BY_FILE
    known = {role: taken for role, taken in look.log.taken.items() if taken is not None and role not in given}
    guessed = {role: (taken, "by its name") for role, taken in known.items()} if of_names else {}
    chosen = {role: (column, look.reasons.get(f"columns.{role}", "as it was given")) for role, column in given.items()}
    columns = {role: column for role in ROLES if (column := chosen.get(role) or guessed.get(role))}
    if columns:
        yield "  columns:\n"
        yield from (line(role, column, reason, indent=4) for role, (column, reason) in columns.items())
    if known and not of_names:
        yield f"  # Columns of this form of files: {listed(f'{role} is {column}' for role, column in known.items())}\n"
    if look.log.passed_over:
        yield f"  # Columns that are not used, although their names are usual: {listed(look.log.passed_over)}\n"


def _training(look: Look) -> Iterator[str]:
    """What training takes from the size of the log."""
    chosen = resolve(TrainingOptions(), look.train)
    notes = {
        "batch_size": f"windows; {look.train.num_rows:,} of them are trained on",
        "learning_rate": "constant after the warm-up",
        "max_epochs": "at most; validation ends it earlier",
    }
    for key in BY_SIZE:
        yield f"  # {line(key, getattr(chosen, key), notes.get(key, ''), indent=0, column=COMMENT_COLUMN - 4)}"
