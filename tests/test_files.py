"""Files that are written in blocks are those that are written at once."""

from pathlib import Path

import pytest
import torch

from csrec_dist.files import StreamedTensor, save_tensors, stream_tensors


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "b": torch.randn(7, 3, generator=generator),
        "a": torch.randn(5, generator=generator).bfloat16(),
        "places": torch.arange(6),
        "none": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "half": torch.randn(2, 2, generator=generator).half(),
        "wide": torch.randn(3, generator=generator).double(),
    }


@pytest.mark.parametrize("num_rows", [1, 2, 100])
def test_streamed_tensors_have_the_bytes_of_saved_ones(tmp_path: Path, num_rows: int) -> None:
    whole = tensors()
    save_tensors(tmp_path / "saved", whole, {"format": "pt"})
    streamed = {
        name: StreamedTensor(tensor.dtype, tuple(tensor.shape), tensor.split(num_rows) if tensor.ndim else [tensor])
        for name, tensor in whole.items()
    }
    stream_tensors(tmp_path / "streamed", streamed, {"format": "pt"})
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "saved").read_bytes()


def test_who_does_not_write_goes_through_the_blocks_in_the_same_order() -> None:
    seen: list[str] = []

    def blocks(name: str, tensor: torch.Tensor) -> StreamedTensor:
        return StreamedTensor(tensor.dtype, tuple(tensor.shape), (seen.append(name) or tensor for _ in range(1)))

    stream_tensors(None, {name: blocks(name, tensor) for name, tensor in tensors().items()}, {})
    assert seen == ["places", "wide", "b", "none", "scalar", "a", "half"]
