"""Checkpoints of RecBole as the members of a run: soft labels are the mean of RecBole's scores."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from csrec_dist.config import Config, parse_config
from csrec_dist.distributed import Runtime
from csrec_dist.errors import UserError
from csrec_dist.labels import LabelCache
from csrec_dist.models.interop import from_recbole
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.run import Run

NUM_ITEMS = 100
LONGEST = 10
"""Of a window of 13 items, the last three are the target, and those of validation and test."""


def histories_of(reference: Any) -> dict[int, list[int]]:
    """The reference's histories that a window holds, by their place."""
    found = zip(reference.histories.tolist(), reference.lengths, strict=True)
    return {place: items[:length] for place, (items, length) in enumerate(found) if length <= LONGEST}


def write_log(path: Path, histories: Sequence[list[int]]) -> None:
    """A log in which items first appear as 1, 2, …, so that the dataset numbers them as RecBole does here."""
    sequences = [list(range(1, NUM_ITEMS + 1)), *([*history, 5, 6, 7] for history in histories)]
    lines = [f"{user},{item},{time}" for user, items in enumerate(sequences) for time, item in enumerate(items)]
    path.write_text("\n".join(["user,item,timestamp", *lines]) + "\n")


def config_of(folder: Path, reference_data: Callable[[str], Any], names: Sequence[str]) -> Config:
    """A run on the references' histories whose members are these checkpoints."""
    write_log(folder / "log.csv", list(histories_of(reference_data(names[0])).values()))
    for name in names:
        reference = reference_data(name)
        from_recbole(reference.weights, reference.config).save_pretrained(folder / name)
    return parse_config(
        {
            "name": "taught",
            "output": str(folder),
            "labels": {"dtype": "float32"},
            "dataset": {"source": str(folder / "log.csv"), "window": 13, "min_interactions": 1, "num_shards": 2},
            "model": {"name": "gru4rec", "width": 8},
            "method": "model_level",
            "teachers": {"pretrained": [str(folder / name) for name in names], "trust_item_order": True},
        }
    )


def last_example_of(dataset: Path, history: list[int]) -> int:
    """Id of the training example whose history is this one, the whole row but its last item."""
    rows = pl.read_parquet(dataset / "train-*.parquet")
    row = next(row for row in rows.iter_rows(named=True) if row["items"][:-1] == history)
    return row["example_offset"] + len(history) - 1


@pytest.mark.parametrize("names", [["GRU4Rec"], ["SASRec", "NARM"]])
def test_labels_are_the_mean_of_their_scores(
    names: list[str], reference_data: Callable[[str], Any], tmp_path: Path
) -> None:
    config = config_of(tmp_path, reference_data, names)
    run = execute(config, Runtime.start(), ["prepare", "teach", "label"])
    histories = histories_of(reference_data(names[0]))
    assert len(histories) == 6
    ids = [last_example_of(Run.of(config).dataset_folder, history) for history in histories.values()]
    labels = LabelCache(run.folder / "labels").rows(torch.tensor(ids))
    expected = torch.stack([reference_data(name).scores[list(histories), 1:].double() for name in names]).mean(0)
    logits = labels.states.double() @ labels.item_weight.double().T
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_bert4rec_takes_one_item_fewer_and_is_refused_for_longer_windows(
    reference_data: Callable[[str], Any], tmp_path: Path
) -> None:
    config = config_of(tmp_path, reference_data, ["BERT4Rec"])
    with pytest.raises(UserError, match=r"BERT4Rec.*histories (of )?up to 11\b.*\b12\b"):
        execute(config, Runtime.start(), ["prepare", "teach"])
