"""Exported files, read as programs without csrec_dist read them, against every history scored by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from csrec_dist import Recommender
from csrec_dist.export import FORMATS, formats
from csrec_dist.export.formats import WRITERS
from csrec_dist.models.options import CONFIGS
from tests.helpers.ranked_lists import ranked, sequences
from tests.helpers.run_folders import make_run

ORDINARY = {("gru4rec", "onnx"), ("gru4rec", "pt2"), ("bert4rec", "flat"), ("bert4rec", "faiss")}
"""A model whose layers have one number of steps in a graph, and one whose items have a bias."""
CASES = [
    pytest.param(model, name, marks=[] if (model, name) in ORDINARY else pytest.mark.long)
    for model in CONFIGS
    for name in FORMATS
]
TOP_N = 6

Ask = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def read_onnx(folder: Path) -> Ask:
    session = onnxruntime.InferenceSession(folder / "recommender.onnx")
    return lambda histories, seen: session.run(["items", "scores"], {"histories": histories, "seen": seen})


def read_pt2(folder: Path) -> Ask:
    program = torch.export.load(folder / "recommender.pt2").module()

    def ask(histories: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        items, scores = program(torch.from_numpy(histories), torch.from_numpy(seen))
        return items.detach().numpy(), scores.detach().numpy()

    return ask


def read_flat(folder: Path) -> Ask:
    session = onnxruntime.InferenceSession(folder / "encoder.onnx")
    vectors = load_file(folder / "items.safetensors")["vectors"]

    def ask(histories: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (queries,) = session.run(None, {"histories": histories})
        scores = queries @ vectors.T
        for row, numbers in zip(scores, seen, strict=True):
            row[numbers[numbers > 0] - 1] = -np.inf
        rows = np.argsort(-scores, axis=1)[:, :TOP_N]
        scores = np.take_along_axis(scores, rows, axis=1)
        return np.where(scores > -np.inf, rows + 1, 0), scores

    return ask


def read_faiss(folder: Path) -> Ask:
    session = onnxruntime.InferenceSession(folder / "encoder.onnx")
    index = faiss.read_index(str(folder / "items.faiss"))

    def ask(histories: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (queries,) = session.run(None, {"histories": histories})
        items, scores = np.zeros((len(queries), TOP_N), np.int64), np.full((len(queries), TOP_N), -np.inf)
        for row, (found, of_row) in enumerate(zip(*index.search(queries, index.ntotal), strict=True)):
            kept = [place for place, item in enumerate(of_row + 1) if item not in seen[row]][:TOP_N]
            items[row, : len(kept)], scores[row, : len(kept)] = of_row[kept] + 1, found[kept]
        return items, scores

    return ask


READERS = {"onnx": read_onnx, "pt2": read_pt2, "flat": read_flat, "faiss": read_faiss}


def test_every_format_has_a_writer_and_a_reader() -> None:
    assert tuple(WRITERS) == tuple(READERS) == FORMATS


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of each model, made once."""
    made: dict[str, Path] = {}

    def run(model: str) -> Path:
        if model not in made:
            config: dict[str, Any] = {"name": model, "width": 8}
            config |= {"inner_width": 8} if model in {"sasrec", "bert4rec", "cl4srec", "dreamrec"} else {}
            config |= {"num_steps": 2} if model == "srgnn" else {}
            made[model] = make_run(tmp_path_factory.mktemp(model), model=config, method="base", dataset={"window": 20})
        return made[model]

    return run


def padded(rows: list[list[int]]) -> np.ndarray:
    filled = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, numbers in zip(filled, rows, strict=True):
        row[: len(numbers)] = numbers
    return filled


@pytest.mark.parametrize(("model", "name"), CASES)
def test_the_files_alone_give_the_models_lists(
    model: str, name: str, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    run = runs(model)
    described = Recommender.from_pretrained(run).export(tmp_path / "out", name, top_n=TOP_N)
    assert described == json.loads((tmp_path / "out/export.json").read_text())
    assert set(described["files"]) == {path.name for path in (tmp_path / "out").iterdir()} - {"export.json"}
    assert described["check"]["lists"] == 2 * described["check"]["histories"] == 60
    ask, raw = READERS[name](tmp_path / "out"), pd.read_parquet(tmp_path / "out/items.parquet").set_index("item")["raw"]
    histories = [history[-described["model"]["max_length"] :] for history in sequences(run).values()]
    histories += [[3], [5, 5], list(range(1, 8))]
    lengths = [len(history) for history in histories]
    assert min(lengths) == 1
    assert max(lengths) == described["model"]["max_length"] == 19
    for some in (histories[:1], histories[-3:-2], histories[-3:], histories):
        for seen in (np.zeros((len(some), 1), np.int64), padded([sorted(set(history)) for history in some])):
            items, scores = ask(padded(some), seen)
            for history, numbers, found in zip(some, items, scores, strict=True):
                wanted = ranked(run, history, exclude_seen=bool(seen.any()))[:TOP_N]
                num = len(wanted)
                assert raw[numbers[:num]].tolist() == [item for item, _ in wanted]
                assert found[:num].tolist() == pytest.approx([score for _, score in wanted], abs=1e-5)
                assert not numbers[num:].any()
                assert (found[num:] == -np.inf).all()


@pytest.mark.parametrize("name", ["onnx", "flat"])
def test_a_large_table_lies_beside_its_graph(
    name: str, runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs("bert4rec")
    within = Recommender.from_pretrained(run).export(tmp_path / "within", name, top_n=TOP_N)
    monkeypatch.setattr(formats, "GRAPH_BYTES", 100)
    beside = Recommender.of_run(run, is_mapped=True).export(tmp_path / "beside", name, top_n=TOP_N)
    assert beside["check"] == within["check"]
    (graph,) = (file for file in within["files"] if file.endswith(".onnx"))
    assert beside["files"].keys() - within["files"].keys() == {f"{graph}.data"}
    assert set(beside["files"]) == {path.name for path in (tmp_path / "beside").iterdir()} - {"export.json"}
    assert (tmp_path / "beside" / graph).stat().st_size < (tmp_path / "within" / graph).stat().st_size
    histories, none = padded([[3, 1], [5]]), np.zeros((2, 1), np.int64)
    for told, wanted in zip(
        READERS[name](tmp_path / "beside")(histories, none),
        READERS[name](tmp_path / "within")(histories, none),
        strict=True,
    ):
        assert np.array_equal(told, wanted)


def test_an_approximate_index_says_what_it_finds(runs: Callable[[str], Path], tmp_path: Path) -> None:
    recommender = Recommender.from_pretrained(runs("bert4rec"))
    check = recommender.export(tmp_path / "out", "faiss", top_n=5, index="HNSW4")["check"]
    assert set(check) == {"histories", "lists", "recall@5"}
    assert 0.5 < check["recall@5"] <= 1
    assert json.loads((tmp_path / "out/export.json").read_text())["files"]["items.faiss"]["index"] == "HNSW4"
