"""The fitted weights of members against a grid, the conditions of an optimum, and examples where they are known."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from csrec_dist.data.dataset import Dataset
from csrec_dist.labels.weights import fit_weights, validation_states
from csrec_dist.models import ItemTable
from csrec_dist.models.sasrec import SASRec
from tests.helpers import label_fixtures as fixtures

torch.set_num_threads(1)


def make(num_members, seed=0, num_examples=200, num_items=40, true=None):
    """Members' states and tables of different widths, and targets drawn from the mixture `true` of their logits."""
    g = torch.Generator().manual_seed(seed)
    states, tables, logits = [], [], []
    for member in range(num_members):
        width, has_bias = 3 + 2 * member, member % 2 == 1
        table = ItemTable(num_items, width, bias=has_bias)
        table.weight.data.normal_(generator=g)
        if has_bias:
            table.bias.data.normal_(generator=g)
        states.append(torch.randn(num_examples, width, generator=g))
        tables.append(table)
        bias = table.bias.detach().double() if has_bias else 0
        logits.append((states[-1].double() @ table.weight.detach().double().T + bias).numpy())
    shares = np.ones(num_members) / num_members if true is None else np.array(true)
    probabilities = torch.from_numpy(np.tensordot(shares, np.array(logits), 1)).softmax(1)
    targets = torch.multinomial(probabilities, 1, generator=g).squeeze(1) + 1
    return states, tables, targets, np.array(logits)


def nll(weights, logits, targets):
    """The mean negative log-likelihood by its definition."""
    found = log_softmax(np.tensordot(np.asarray(weights), logits, 1), axis=1)
    return -found[np.arange(len(targets)), targets.numpy() - 1].mean()


@pytest.mark.parametrize("true", [(0.5, 0.5), (0.2, 0.8), (1.0, 0.0)])
def test_two_members_against_a_grid(true):
    states, tables, targets, logits = make(2, true=true)
    found = fit_weights(states, tables, targets)
    grid = np.linspace(0, 1, 1001)
    values = [nll((w, 1 - w), logits, targets) for w in grid]
    assert abs(found.weights[0] - grid[int(np.argmin(values))]) <= 1.5e-3
    assert found.after <= min(values) + 1e-9
    assert found.before == pytest.approx(nll((0.5, 0.5), logits, targets), abs=1e-9)
    assert found.after == pytest.approx(nll(found.weights, logits, targets), abs=1e-9)


@pytest.mark.parametrize("num_members", [1, 3, 5, 8])
def test_weights_are_on_the_simplex_and_stationary(num_members):
    """At the optimum the partial derivatives of members with weight are equal, and no other one is smaller."""
    true = np.array([0.5, 0.3, 0.2, 0, 0, 0, 0, 0])[:num_members]
    states, tables, targets, logits = make(num_members, seed=num_members, true=true / true.sum())
    found = fit_weights(states, tables, targets)
    weights = np.array(found.weights)
    assert abs(weights.sum() - 1) < 1e-9
    assert weights.min() >= 0
    assert found.after <= found.before
    mixed = np.tensordot(weights, logits, 1)
    p = np.exp(log_softmax(mixed, axis=1))
    picked = logits[:, np.arange(len(targets)), targets.numpy() - 1]
    gradient = ((p * logits).sum(2) - picked).mean(1)
    held = weights > 1e-4
    assert np.ptp(gradient[held]) < 1e-4
    assert (gradient[~held] > gradient[held].mean() - 1e-4).all()


def test_a_useless_member_gets_no_weight_and_equal_members_keep_equal_weights():
    states, tables, targets, _ = make(2, true=(1.0, 0.0), num_examples=2000)
    assert fit_weights(states, tables, targets).weights[0] > 0.9
    same = fit_weights([states[0]] * 2, [tables[0]] * 2, targets)
    assert same.weights == (0.5, 0.5)
    assert same.after == same.before


def test_the_fit_is_repeatable():
    given = make(4, seed=9)[:3]
    assert fit_weights(*given) == fit_weights(*given)


@pytest.fixture
def validated(tmp_path):
    """A dataset whose validation rows are those of its train split, all of at least two items."""
    shards = [[row for row in rows if len(row) > 1] for rows in fixtures.make_rows()]
    folder = fixtures.write_dataset(tmp_path / "d", shards).folder
    for path in folder.glob("train-*"):
        shutil.copy(path, Path(str(path).replace("train-", "valid-")))
    info = json.loads((folder / "dataset.json").read_text())
    shard_rows = info["splits"]["train"]["shard_rows"]
    info["splits"]["valid"] = info["splits"]["train"] | {"shard_examples": shard_rows, "num_examples": sum(shard_rows)}
    (folder / "dataset.json").write_text(json.dumps(info))
    return Dataset(folder), [row for rows in shards for row in rows], shards


def test_validation_states_are_those_of_the_histories_without_their_targets(validated):
    dataset, rows, _ = validated
    config = SASRec.Config(name="sasrec", width=4, num_heads=2)
    models = [SASRec(config, fixtures.NUM_ITEMS, fixtures.WINDOW - 1).train() for _ in range(2)]
    states, targets = validation_states(models, dataset, torch.device("cpu"))
    assert targets.tolist() == [row[-1] for row in rows]
    for model, found in zip(models, states, strict=True):
        expected = torch.cat([model.eval().encode_last(torch.tensor([row[:-1]])) for row in rows])
        torch.testing.assert_close(found, expected)


def test_few_validation_examples_come_from_all_shards(validated):
    dataset, _, shards = validated
    models = [SASRec(SASRec.Config(name="sasrec", width=4, num_heads=2), fixtures.NUM_ITEMS, fixtures.WINDOW - 1)]
    (states,), targets = validation_states(models, dataset, torch.device("cpu"), most=10)
    assert targets.tolist() == [row[-1] for rows in shards for row in rows[:2]]
    assert states.shape == (10, 4)
    assert fit_weights([states], [models[0].item_table], targets).weights == (1.0,)
