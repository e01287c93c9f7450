"""Checkpoints of RecBole give the scores that RecBole gave."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from csrec_dist.errors import UserError
from csrec_dist.models.interop import RECBOLE, from_recbole

# RecBole's NextItNet reads the last column even where it is padding: only full histories compare.
FULL_HISTORIES_ONLY = {"NextItNet"}


@pytest.mark.parametrize("name", sorted(RECBOLE))
def test_scores_agree(name: str, reference_data: Callable[[str], Any]) -> None:
    reference = reference_data(name)
    model = from_recbole(reference.weights, reference.config).eval()
    scores = model.score(reference.histories)
    assert scores.shape == reference.scores.shape
    full = torch.tensor(reference.lengths) == reference.histories.shape[1]
    compared = full if name in FULL_HISTORIES_ONLY else torch.ones_like(full)
    assert compared.any()
    torch.testing.assert_close(scores[compared, 1:], reference.scores[compared, 1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(RECBOLE))
def test_every_parameter_comes_over(name: str, reference_data: Callable[[str], Any]) -> None:
    reference = reference_data(name)
    model = from_recbole(reference.weights, {**reference.config, "model": name})
    theirs = sum(weight.numel() for weight in reference.weights.values())
    assert sum(parameter.numel() for parameter in model.parameters()) == theirs - model.config.width
    assert model.config.name == name.lower()


def test_the_longest_history_is_the_checkpoint_s(reference_data: Callable[[str], Any]) -> None:
    sasrec, gru4rec = reference_data("SASRec"), reference_data("GRU4Rec")
    assert from_recbole(sasrec.weights, sasrec.config).max_length == 12
    assert from_recbole(gru4rec.weights, {**gru4rec.config, "MAX_ITEM_LIST_LENGTH": 30}).max_length == 30
    assert from_recbole(gru4rec.weights, gru4rec.config).max_length == 50


def test_what_cannot_be_read_is_said(reference_data: Callable[[str], Any]) -> None:
    sasrec, gru4rec = reference_data("SASRec"), reference_data("GRU4Rec")
    with pytest.raises(UserError, match="names 'Caser'; give `model`, one of GRU4Rec"):
        from_recbole(sasrec.weights, {**sasrec.config, "model": "Caser"})
    with pytest.raises(UserError, match="its parameters tell none"):
        from_recbole({"item_embedding.weight": torch.zeros(3, 2)}, {})
    with pytest.raises(UserError, match="hidden_act = 'relu'; the model here has 'gelu' only"):
        from_recbole(sasrec.weights, {**sasrec.config, "hidden_act": "relu"})
    with pytest.raises(UserError, match="no key 'n_heads'"):
        from_recbole(sasrec.weights, {key: value for key, value in sasrec.config.items() if key != "n_heads"})
    with pytest.raises(UserError, match="do not fit"):
        from_recbole(gru4rec.weights, {**gru4rec.config, "hidden_size": 25})
    with pytest.raises(UserError, match=r"no parameter 'item_embedding.weight'"):
        from_recbole({"dense.bias": torch.zeros(3)}, {"model": "GRU4Rec"})
