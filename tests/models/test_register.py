"""Models of others: a class that is registered trains, labels, is saved and read as those of the package are."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from csrec_dist import CSRec, Dataset, Recommender
from csrec_dist.config import parse_config
from csrec_dist.errors import UserError
from csrec_dist.models import ModelConfig, SequentialModel, load, model_class, options, register
from tests.helpers.shop import DATASET, TRAINING, shop_log


def decaying() -> type[SequentialModel]:
    """A new class each time, as a cell that is run again makes one: a sum of vectors, later ones counting more."""

    class DecayConfig(ModelConfig):
        name: Literal["decay"] = "decay"
        dropout: float = 0.0
        decay: float = 0.5

    class Decay(SequentialModel):
        Config = DecayConfig
        config: DecayConfig

        def __init__(self, config: DecayConfig, num_items: int, max_length: int) -> None:
            super().__init__(config, num_items, max_length)
            torch.nn.init.xavier_normal_(self.item_table.weight)

        def encode(self, histories: Tensor) -> Tensor:
            state, states = torch.zeros(len(histories), self.config.width), []
            for vectors in self.item_table(histories).unbind(1):
                state = self.config.decay * state + vectors
                states.append(state)
            return torch.stack(states, 1)

    return register(Decay)


def test_a_registered_model_is_taught_distilled_saved_and_read(tmp_path: Path) -> None:
    decay = decaying()
    data = Dataset.prepare(shop_log(), tmp_path / "data", **DATASET)
    run = CSRec("own", {"name": "decay", "width": 8, "decay": 0.25}, training=TRAINING, output=tmp_path).fit(data)
    assert isinstance(run.student, decay)
    assert run.student.config.decay == 0.25  # type: ignore[attr-defined]
    assert run.labels.num_examples == data.splits["train"].num_examples
    run.recommender.save_pretrained(tmp_path / "saved")
    histories = [["sku1", "sku4"], ["sku2"]]
    found = Recommender.from_pretrained(tmp_path / "saved").recommend(histories=histories, top_n=3)
    assert found["item"].tolist() == run.recommender.recommend(histories=histories, top_n=3)["item"].tolist()
    weight = run.student.item_table.weight.detach()
    state = 0.25 * weight[0] + weight[3]
    assert torch.allclose(run.student.score([[1, 4]])[0, 1:], weight @ state, atol=1e-6)
    with pytest.raises(UserError, match=r"model.decai: unknown key; did you mean decay"):
        CSRec("own", {"name": "decay", "decai": 1})


def test_a_class_that_is_defined_again_takes_the_place_of_the_old_one() -> None:
    first, second = decaying(), decaying()
    assert model_class("decay") is second is not first


def test_what_cannot_be_registered_is_named() -> None:
    class Bare(SequentialModel):
        def encode(self, histories: Tensor) -> Tensor:
            return histories

    class Nameless(Bare):
        Config = ModelConfig

    class Taken(Bare):
        Config = options.SASRecConfig

    for model in (Bare, Nameless):
        with pytest.raises(UserError, match=rf"{model.__name__} needs a Config: .*name of its own"):
            register(model)
    with pytest.raises(UserError, match=r"There is a model 'sasrec' already, csrec_dist\.models\.sasrec\.SASRec"):
        register(Taken)


def test_an_installed_package_offers_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entry point is loaded when the name is met, in a config or in a saved model."""
    (tmp_path / "offered_models.py").write_text("from tests.models.test_register import decaying\n\ndecaying()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "offered_models", raising=False)

    def offered(group: str, name: str) -> list[EntryPoint]:
        return [EntryPoint(name, "offered_models", group)] if name == "decay" else []

    monkeypatch.setattr(options, "entry_points", offered)
    values: dict[str, Any] = {"name": "own", "dataset": {"path": "data"}, "method": "base"}
    assert parse_config(values | {"model": {"name": "decay", "decay": 0.75}}).model.decay == 0.75  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"model\.name: 'decai' is not a model; did you mean decay"):
        parse_config(values | {"model": "decai"})
    model = model_class("decay")(options.config_class("decay").model_validate({"width": 4}), 5, 3)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(load(tmp_path / "model").score([[1, 2]]), model.eval().score([[1, 2]]))
