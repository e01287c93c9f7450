"""Golden outputs of another library's models, where they are on this machine."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file
from torch import Tensor


class Reference(NamedTuple):
    """A checkpoint with its config, and the scores [B, V+1] that it gave to padded histories [B, L]."""

    weights: dict[str, Tensor]
    config: dict[str, Any]
    histories: Tensor
    lengths: list[int]
    scores: Tensor


@pytest.fixture
def reference_data() -> Callable[[str], Reference]:
    """Read the reference of a model by its name; skip where there is none."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("CSREC_TEST_DATA", default)).parent / "reference"

    def read(name: str) -> Reference:
        path = folder / f"{name.lower()}.safetensors"
        if not path.exists():
            pytest.skip(f"no reference outputs at {path}; CSREC_TEST_DATA names the folder beside theirs")
        tensors = load_file(path)
        weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
        config = json.loads((folder / "meta.json").read_text())[name]["config"]
        return Reference(weights, config, tensors["histories"], tensors["lengths"].tolist(), tensors["scores"])

    return read
