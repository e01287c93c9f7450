"""Strategies as values: who is trained, on what, regularised by whom, and who labels."""

import pytest

from csrec_dist.models import config_class
from csrec_dist.teachers import METHODS

MODEL = config_class("gru4rec").model_validate({})
OTHER = config_class("sasrec").model_validate({"width": 32})


def test_model_level_members_differ_in_their_seeds_only() -> None:
    module = METHODS["model_level"].make([MODEL] * 3, 4, 0.5)
    assert len({member.seed for member in module.members}) == 3
    assert {(member.model, member.sample, member.regularised_by) for member in module.members} == {(MODEL, 1.0, None)}
    assert module.labelling == tuple(member.name for member in module.members)


def test_data_level_members_see_sub_samples_and_may_differ_in_architecture() -> None:
    module = METHODS["data_level"].make([MODEL, OTHER], 4, 0.5)
    assert [(member.model, member.sample) for member in module.members] == [(MODEL, 0.5), (OTHER, 0.5)]
    assert len({member.seed for member in module.members}) == 2
    assert len(module.rounds) == 1


def test_the_main_teacher_is_trained_after_the_side_teacher_and_labels_alone() -> None:
    module = METHODS["training_level"].make([OTHER, MODEL], 4, 0.8)
    (side,), (main,) = module.rounds
    assert (side.model, side.sample, side.regularised_by) == (OTHER, 0.8, None)
    assert (main.model, main.sample, main.regularised_by) == (MODEL, 1.0, side.name)
    assert module.labelling == (main.name,)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"softrec"}))
def test_runs_of_other_seeds_share_no_member(method: str) -> None:
    seeds = [member.seed for seed in range(4) for member in METHODS[method].make([MODEL] * 2, seed, 0.8).members]
    assert len(set(seeds)) == len(seeds)
