"""What a test does whenever a training in this process reads a batch: count, wait, cut it off."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import pytest

from csrec_dist.data.dataset import Dataset


@contextmanager
def at_each_batch(act: Callable[[], object]) -> Iterator[list[tuple[int, int]]]:
    """In the block `act` is called in the place of each batch of a training's stream, which then follows.

    Yields a list that gets the epoch and step at which each stream begins.
    """
    real, begun = Dataset.stream, []

    def acted(element: dict[str, Any]) -> dict[str, Any]:
        act()
        return element

    def stream(dataset: Dataset, split: str, **options: Any) -> datasets.IterableDataset:
        opened = real(dataset, split, **options)
        if "epoch" not in options:
            return opened
        begun.append((options["epoch"], options["start"]))
        return opened.map(acted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dataset, "stream", stream)
        yield begun
