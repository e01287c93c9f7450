"""Models in slices encode histories as whole ones do, with any number of histories on each rank."""

import numpy as np
import torch

from csrec_dist import models
from csrec_dist.models import ModelConfig, SequentialModel
from csrec_dist.models import histories as prefixes
from tests.helpers.catalog_ranks import shard_of
from tests.helpers.ranks import run_ranks

NUM_ITEMS, MAX_LENGTH, NUM_RANKS = 37, 5, 3
KEYS = {"bert4rec": {"prefixes": 2}, "dreamrec": {"num_steps": 5, "sampling_steps": 3}, "srgnn": {"num_steps": 2}}

States = dict[str, tuple[np.ndarray, np.ndarray]]


def small(name: str) -> ModelConfig:
    return models.config_class(name).model_validate({"width": 8, "dropout": 0.0, **KEYS.get(name, {})})


def histories(rank: int) -> torch.Tensor:
    """Two, seven or no histories of three items, padded."""
    items = torch.randint(
        1, NUM_ITEMS + 1, ([2, 7, 0][rank], MAX_LENGTH), generator=torch.Generator().manual_seed(rank)
    )
    items[:, 3:] = 0
    return items


@torch.no_grad()
def encoded(model: SequentialModel, items: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return model.encode(items).numpy(), model.encode_last(items).numpy()


def encode_in_slices(rank: int, world_size: int) -> States:
    prefixes.PREFIXES_AT_ONCE = 4
    catalog = shard_of(rank, world_size, world_size, NUM_ITEMS)
    made = {name: models.build(small(name), NUM_ITEMS, MAX_LENGTH, 3, catalog.group).eval() for name in models.MODELS}
    return {name: encoded(model, histories(rank)) for name, model in made.items()}


def test_ranks_with_other_numbers_of_histories_encode_as_one_process_does() -> None:
    for rank, found in enumerate(run_ranks(encode_in_slices, NUM_RANKS)):
        for name, (every, last) in found.items():
            whole = models.build(small(name), NUM_ITEMS, MAX_LENGTH, 3).eval()
            expected_every, expected_last = encoded(whole, histories(rank))
            np.testing.assert_allclose(every, expected_every, rtol=1e-4, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(last, expected_last, rtol=1e-4, atol=1e-5, err_msg=name)
