"""Wrong histories, names, configs and folders: one clear sentence each."""

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from csrec_dist.errors import UserError
from csrec_dist.models import ItemTable, ModelConfig, build, config_class, load
from csrec_dist.models.rng import Dropout


def config(name: str, **keys: float) -> ModelConfig:
    return config_class(name).model_validate(keys)


def test_wrong_histories_are_named() -> None:
    model = build(config("gru4rec"), 9, 5, 0)
    with pytest.raises(UserError, match="History 1 is empty"):
        model.score([[1], []])
    with pytest.raises(UserError, match="No history"):
        model.score([])
    with pytest.raises(UserError, match=r"History 1 has item 10 at position 2; items are 1…9"):
        model.score([[1], [1, 2, 10]])
    with pytest.raises(UserError, match="History 0 has item -1 at position 0"):
        model.score([[-1]])
    with pytest.raises(UserError, match="History 0 has item 0 at position 0"):
        model.score(torch.tensor([[0, 4]]))
    with pytest.raises(UserError, match="History 0 has item 0 at position 1"):
        model.score([[3, 0, 4]])
    with pytest.raises(UserError, match="integer tensor"):
        model.score(torch.ones(2, 3))


def test_an_item_beyond_the_kept_window_is_checked_too() -> None:
    model = build(config("gru4rec"), 9, 2, 0)
    with pytest.raises(UserError, match="History 0 has item 12 at position 0"):
        model.score([[12, 1, 2, 3]])


def test_a_transformer_refuses_more_positions_than_it_has() -> None:
    model = build(config("sasrec"), 9, 5, 0)
    with pytest.raises(ValueError, match="6 positions; this model has 5"):
        model.encode(torch.ones(1, 6, dtype=torch.int64))


def test_unknown_names_and_keys_are_refused() -> None:
    with pytest.raises(UserError, match="no model 'sasrek'; choose one of"):
        config_class("sasrek")
    with pytest.raises(ValidationError, match="Extra inputs"):
        config("sasrec", depth=3)
    with pytest.raises(ValidationError, match="width 10 is not a multiple of num_heads 4"):
        config("sasrec", width=10, num_heads=4)
    with pytest.raises(ValidationError):
        config("gru4rec", dropout=1.0)
    with pytest.raises(ValidationError, match="frozen"):
        config("gru4rec").width = 3  # type: ignore[misc]


def test_broken_folders_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path)
    build(config("gru4rec", width=8), 9, 5, 0).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    description = json.loads((tmp_path / "config.json").read_text())

    def rewrite(**changes: object) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**description, **changes}))

    rewrite(num_items=10)
    with pytest.raises(UserError, match="does not fit"):
        load(tmp_path)
    rewrite(model_type="elsewhere")
    with pytest.raises(UserError, match="no model 'elsewhere'"):
        load(tmp_path)
    rewrite(config={**description["config"], "depth": 2})
    with pytest.raises(UserError, match="not a valid model config"):
        load(tmp_path)
    rewrite(surprise=1)
    with pytest.raises(UserError, match="does not describe a model"):
        load(tmp_path)
    rewrite()
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="Write the model again"):
        load(tmp_path)


def test_the_folder_is_in_the_usual_style(tmp_path: Path) -> None:
    build(config("sasrec"), 9, 5, 0).save_pretrained(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    assert description["architectures"] == ["SASRec"]
    assert description["model_type"] == "sasrec"
    assert (description["num_items"], description["max_length"]) == (9, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_padding_reads_zeros_and_trains_nothing() -> None:
    table = ItemTable(3, 2, bias=True)
    torch.nn.init.constant_(table.weight, math.nan)
    with torch.no_grad():
        table.weight[1:] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    vectors = table(torch.tensor([[2, 3, 0, 0]]))
    assert vectors.tolist() == [[[1, 2], [3, 4], [0, 0], [0, 0]]]
    vectors.sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.tolist() == [[0, 0], [1, 1], [1, 1]]


def test_the_item_bias_is_added_to_the_logits() -> None:
    table = ItemTable(2, 1, bias=True)
    assert table.bias is not None
    with torch.no_grad():
        table.weight.copy_(torch.tensor([[2.0], [3.0]]))
        table.bias.copy_(torch.tensor([0.5, -1.0]))
    assert table.logits(torch.tensor([[10.0]])).tolist() == [[20.5, 29.0]]


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.9])
def test_dropout_keeps_the_mean_and_drops_its_share(probability: float) -> None:
    torch.manual_seed(3)
    x = torch.ones(400, 500, requires_grad=True)
    dropped = Dropout(probability)(x)
    share = float((dropped == 0).double().mean())
    assert share == pytest.approx(probability, abs=0.005)
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - probability)))
    dropped.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, dropped)
