"""The card of a prepared dataset: where it is from, how it was prepared, its splits and columns, what to mind."""

from collections.abc import Iterator

from csrec_dist import __version__
from csrec_dist.data.dataset import Dataset, without_places
from csrec_dist.hub import bullets, card, code, table

COLUMNS = {
    "row": "id of the row, the same wherever it is read",
    "user": "number of the user, 1 … (users.parquet has the raw ids)",
    "items": "numbers of the items, oldest first (items.parquet has the raw ids); in valid and test the target last",
    "example_offset": "id of the row's first example, by which soft labels are joined",
    "rating": "of the row's last item, null where the log has none",
    "leaked": "whether training has the row's last item as a target of the same user; false in train",
}
WEIGHTS_COLUMN = {
    "weights": "how much the examples of the row weigh in training: one for each item but the first, 1 in the mean"
}
TRUE_COLUMN = {"true_target": "the item that the user truly preferred as the row's last, 0 where it is unknown"}
HEAD = {"library_name": "csrec_dist", "tags": ["sequential-recommendation", "recommender"]}
USE = """\
from datasets import load_dataset

rows = load_dataset("FOLDER OR HUB NAME", split="train", streaming=True)

# or, with batches, epochs and all that training reads:
from csrec_dist import Dataset
from huggingface_hub import snapshot_download

data = Dataset(snapshot_download("HUB NAME", repo_type="dataset"))  # or the folder"""


def dataset_card(dataset: Dataset) -> str:
    """The card as Markdown, opened by what the Hub and `load_dataset` read: which files are which split."""
    files = [{"split": name, "path": f"{name}-*.parquet"} for name in dataset.splits]
    head = HEAD | {"configs": [{"config_name": "default", "data_files": files}]}
    return card(head, _sections(dataset))


def described(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Rows that say what a dataset was made of and how."""
    info, statistics = without_places(dataset.info), dataset.statistics
    source, reading, options = (info.get(name, {}) for name in ("source", "reading", "options"))
    yield "log", f"{source.get('name')}, SHA-256 {source.get('sha256')}"
    yield "kept", ", ".join(f"{statistics[name]:,} {name}" for name in ("interactions", "users", "items"))
    if reading.get("first_time"):
        yield "time", f"{reading['first_time']} to {reading['last_time']}"
    keys = ("min_interactions", "k_core", "duplicates", "window", "windows", "split")
    yield "prepared with", ", ".join(f"{key} {options.get(key)}" for key in keys)
    for name in ("keep", "weights"):
        if rules := options.get(name):
            yield name, "; ".join(f"{column}: {rule}" for column, rule in rules.items())
    if noise := options.get("noise"):
        yield "noise", f"{noise['rate']:.0%} of the training interactions replaced ({noise['kind']})"


def _sections(dataset: Dataset) -> Iterator[str]:
    yield f"# Sequences of {dataset.num_users:,} users over {dataset.num_items:,} items"
    yield (
        f"Windows of at most {dataset.window} items, cut from a log for sequential recommendation: training, "
        f"validation and test rows as Parquet, in {dataset.num_shards} shards a split."
    )
    yield code(USE)
    yield "## Data"
    yield table(["", "value"], [*described(dataset), ("fingerprint", dataset.fingerprint), ("csrec_dist", __version__)])
    yield "## Splits"
    rows = [(name, f"{split.num_rows:,}", f"{split.num_examples:,}") for name, split in dataset.splits.items()]
    yield table(["split", "rows", "examples"], rows)
    yield "## Columns"
    columns = COLUMNS | (WEIGHTS_COLUMN if dataset.example_weights else {})
    columns |= TRUE_COLUMN if dataset.has_true_targets else {}
    yield table(["column", "content"], columns.items())
    yield "## Limits"
    yield bullets(_limits(dataset))


def _limits(dataset: Dataset) -> Iterator[str]:
    yield (
        "users.parquet has the raw ids of users, and sequences.parquet all that each of them did: whether they may be "
        "published is for the owner of the log to say, and the terms of the log hold for what is made of it."
    )
    leaked = dataset.statistics.get("leaked_test_targets", 0)
    if leaked:
        yield f"{leaked:,} of the test targets are training targets of the same user: rank them apart."
    unseen = dataset.statistics.get("test_targets_never_in_training", 0)
    if unseen:
        yield f"{unseen:,} of the test targets never occur in training."
    yield "Offline figures on logged clicks do not say what people would do with other recommendations."
