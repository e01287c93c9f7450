"""A whole run whose student learns from chosen, top-k labels, alone and with the catalog in slices."""

from pathlib import Path

import pytest

from csrec_dist.files import read_json
from csrec_dist.labels import read_index
from tests.helpers.ranks import run_ranks
from tests.runs.test_catalog_runs import same_training, whole_run

RUN = ["model={name: gru4rec, width: 16, dropout: 0}", "training.kl=forward", "training.temperature=2"]
RUN += ["labels.form=auto", "labels.dtype=auto", "labels.keep=3", "labels.tolerance=5"]


@pytest.mark.long
def test_a_student_learns_from_top_k_labels_at_any_layout(small_dataset: Path, tmp_path: Path) -> None:
    run_ranks(whole_run, 1, str(small_dataset), str(tmp_path / "alone"), RUN)
    sliced = [*RUN, "distributed.catalog_parallel=2"]
    run_ranks(whole_run, 2, str(small_dataset), str(tmp_path / "sliced"), sliced)
    found, expected = tmp_path / "sliced" / "small", tmp_path / "alone" / "small"
    same_training(found / "student", expected / "student")
    for run in (found, expected):
        index = read_index(run / "labels")
        assert (index.form, index.temperature) == ("topk", 2.0)
        assert index.measured is not None
        epochs = read_json(run / "student/metrics.json")["epochs"]
        assert all(epoch["divergence"] > 0 for epoch in epochs)
