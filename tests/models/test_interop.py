"""Checkpoints of RecBole give the scores that RecBole gave."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from csrec_dist.errors import UserError
from csrec_dist.models.interop import RECBOLE, from_recbole

# RecBole's NextItNet reads the last column even where it is padding: only full histories compare.
FULL_HISTORIES_ONLY = {"NextItNet"}


def kept(name: str, reference: Any) -> torch.Tensor:
    """The items that RecBole's scores follow from: its BERT4Rec drops the oldest one of every history."""
    return reference.histories[:, 1:] if name == "BERT4Rec" else reference.histories


@pytest.mark.parametrize("name", sorted(RECBOLE))
def test_scores_agree(name: str, reference_data: Callable[[str], Any]) -> None:
    reference = reference_data(name)
    model = from_recbole(reference.weights, reference.config).eval()
    histories = kept(name, reference)
    compared = histories[:, -1 if name in FULL_HISTORIES_ONLY else 0] != 0
    assert compared.any()
    scores = model.score(histories[compared])
    assert scores.shape == reference.scores[compared].shape
    torch.testing.assert_close(scores[:, 1:], reference.scores[compared, 1:], rtol=0, atol=1e-5)


def test_bert4rec_scores_of_full_histories_agree_as_they_are(reference_data: Callable[[str], Any]) -> None:
    reference = reference_data("BERT4Rec")
    model = from_recbole(reference.weights, reference.config).eval()
    full = torch.tensor(reference.lengths) == reference.histories.shape[1]
    scores = model.score(reference.histories[full])
    torch.testing.assert_close(scores[:, 1:], reference.scores[full, 1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(RECBOLE))
def test_every_parameter_comes_over(name: str, reference_data: Callable[[str], Any]) -> None:
    reference = reference_data(name)
    model = from_recbole(reference.weights, {**reference.config, "model": name})
    theirs = sum(weight.numel() for weight in reference.weights.values())
    padding = model.config.width + ("output_bias" in reference.weights)
    assert sum(parameter.numel() for parameter in model.parameters()) == theirs - padding
    assert model.config.name == name.lower()


def test_the_longest_history_is_the_checkpoint_s(reference_data: Callable[[str], Any]) -> None:
    sasrec, gru4rec = reference_data("SASRec"), reference_data("GRU4Rec")
    bert4rec = reference_data("BERT4Rec")
    assert from_recbole(sasrec.weights, sasrec.config).max_length == 12
    assert from_recbole(bert4rec.weights, bert4rec.config).max_length == 11
    assert from_recbole(gru4rec.weights, {**gru4rec.config, "MAX_ITEM_LIST_LENGTH": 30}).max_length == 30
    assert from_recbole(gru4rec.weights, gru4rec.config).max_length == 50


def test_what_cannot_be_read_is_said(reference_data: Callable[[str], Any]) -> None:
    sasrec, gru4rec = reference_data("SASRec"), reference_data("GRU4Rec")
    with pytest.raises(UserError, match="names 'Caser'; give `model`, one of BERT4Rec, GRU4Rec"):
        from_recbole(sasrec.weights, {**sasrec.config, "model": "Caser"})
    with pytest.raises(UserError, match="its parameters tell none"):
        from_recbole({"item_embedding.weight": torch.zeros(3, 2)}, {})
    with pytest.raises(UserError, match="hidden_act = 'relu'; the model here has 'gelu' only"):
        from_recbole(sasrec.weights, {**sasrec.config, "hidden_act": "relu"})
    with pytest.raises(UserError, match=r"dropout = 1.5: Input should be less than 1; give that of the checkpoint"):
        from_recbole(sasrec.weights, {**sasrec.config, "hidden_dropout_prob": 1.5})
    with pytest.raises(UserError, match=r"width 16 is not a multiple of num_heads 3"):
        from_recbole(sasrec.weights, {**sasrec.config, "n_heads": 3})
    with pytest.raises(UserError, match="no key 'n_heads'"):
        from_recbole(sasrec.weights, {key: value for key, value in sasrec.config.items() if key != "n_heads"})
    with pytest.raises(UserError, match="do not fit"):
        from_recbole(gru4rec.weights, {**gru4rec.config, "hidden_size": 25})
    with pytest.raises(UserError, match=r"no parameter 'item_embedding.weight'"):
        from_recbole({"dense.bias": torch.zeros(3)}, {"model": "GRU4Rec"})


@pytest.mark.parametrize("name", sorted(RECBOLE))
def test_items_numbered_otherwise_keep_their_scores(name: str, reference_data: Callable[[str], Any]) -> None:
    reference = reference_data(name)
    items = torch.randperm(100, generator=torch.Generator().manual_seed(0)) + 1
    model = from_recbole(reference.weights, reference.config, items=items.tolist()).eval()
    ours = torch.zeros(101, dtype=torch.int64)
    ours[items] = torch.arange(1, 101)
    histories = kept(name, reference)
    compared = histories[:, -1 if name in FULL_HISTORIES_ONLY else 0] != 0
    scores = model.score(ours[histories[compared]])
    torch.testing.assert_close(scores[:, 1:], reference.scores[compared][:, items], rtol=0, atol=1e-5)
    for wrong in ([1, 1], [0], [101]):
        with pytest.raises(UserError, match="different numbers of 1 to 100"):
            from_recbole(reference.weights, reference.config, items=wrong)
