"""The formats: each writes its files into a folder and reads them back as a program without csrec_dist does."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from csrec_dist.errors import UserError, quoted
from csrec_dist.export.parity import Search
from csrec_dist.export.programs import Encoder, Program, TopItems, item_vectors, quiet, traced
from csrec_dist.models import SequentialModel
from csrec_dist.tensor_files import StreamedTensor, TensorSpec, map_tensor, stream_tensors

EXACT_INDEX = "Flat"
BLOCK_ROWS = 1 << 16
"""Item vectors that are written at a time."""
ONNX = ("onnx", "onnxscript", "onnxruntime")
"""The packages that write it and read it back."""
HISTORIES = {
    "dtype": "int64",
    "shape": ["batch", "length"],
    "what": "numbers of items (column `item` of items.parquet), oldest first, right-padded with 0: each has at least "
    "one, and at most max_length, the latest",
}
SEEN = {"dtype": "int64", "shape": ["batch", "seen"], "what": "numbers of items to leave out, 0 for none; at least one"}
ITEMS = {"dtype": "int64", "shape": ["batch", "top_n"], "what": "numbers of the best items, best first; 0 for none"}
SCORES = {"dtype": "float32", "shape": ["batch", "top_n"], "what": "their logits; -inf for none"}
QUERIES = {"dtype": "float32", "shape": ["batch", "dimensions"], "what": "their products with item vectors are logits"}
TOP_ITEMS = {"inputs": {"histories": HISTORIES, "seen": SEEN}, "outputs": {"items": ITEMS, "scores": SCORES}}
ENCODER = {"inputs": {"histories": HISTORIES}, "outputs": {"queries": QUERIES}}
VECTORS = "row i is that of item i + 1; [items, dimensions], float32, the last number its bias if the model has one"


class Written(NamedTuple):
    """What a format wrote: `search` searches with the files, `files` describes each, `packages` wrote and read them."""

    search: Search
    files: dict[str, Any]
    packages: tuple[str, ...]
    is_exact: bool = True


def write_onnx(model: SequentialModel, folder: Path, top_n: int, index: str) -> Written:
    """recommender.onnx: the encoder and the exact best items in one graph."""
    path = folder / "recommender.onnx"
    session = _to_onnx(TopItems(model, top_n), path, TOP_ITEMS)

    def search(histories: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        items, scores = session.run(["items", "scores"], {"histories": histories, "seen": seen})
        return items, scores

    return Written(search, {path.name: TOP_ITEMS}, ONNX)


def write_pt2(model: SequentialModel, folder: Path, top_n: int, index: str) -> Written:
    """recommender.pt2: as recommender.onnx, for torch.export.load."""
    path = folder / "recommender.pt2"
    with quiet():
        torch.export.save(traced(TopItems(model, top_n)), path)
        program = torch.export.load(path).module()

    @torch.no_grad()
    def search(histories: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        items, scores = program(torch.from_numpy(histories), torch.from_numpy(seen))
        return items.numpy(), scores.numpy()

    return Written(search, {path.name: TOP_ITEMS}, ())


def write_flat(model: SequentialModel, folder: Path, top_n: int, index: str) -> Written:
    """items.safetensors, the item vectors, and encoder.onnx, whose queries they are multiplied with."""
    path = folder / "items.safetensors"
    table, num_items = model.item_table, model.num_items
    shape = num_items, item_vectors(table, slice(0, 0)).shape[1]
    rows = (slice(first, first + BLOCK_ROWS) for first in range(0, num_items, BLOCK_ROWS))
    blocks = (item_vectors(table, some) for some in rows)
    stream_tensors(path, {"vectors": StreamedTensor(torch.float32, shape, blocks)}, {})
    vectors = map_tensor(path, "vectors", TensorSpec("float32", shape))
    encode = _encoder(model, folder)

    def search(histories: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = np.pad(encode(histories) @ vectors.T, ((0, 0), (1, 0)), constant_values=-np.inf)
        np.put_along_axis(scores, seen, -np.inf, axis=1)
        items = np.argsort(-scores, axis=1, kind="stable")[:, :top_n]
        scores = np.take_along_axis(scores, items, axis=1)
        return np.where(scores == -np.inf, 0, items), scores

    files = {path.name: {"vectors": VECTORS}, "encoder.onnx": ENCODER}
    return Written(search, files, ONNX)


def write_faiss(model: SequentialModel, folder: Path, top_n: int, index: str) -> Written:
    """items.faiss, an index of the item vectors by their inner product with queries, and encoder.onnx."""
    faiss = _require("faiss", "faiss-cpu")
    vectors = item_vectors(model.item_table).numpy()
    path = folder / "items.faiss"
    try:
        built = faiss.index_factory(vectors.shape[1], index, faiss.METRIC_INNER_PRODUCT)
        built.train(vectors)
        built.add(vectors)
    except RuntimeError as error:
        reason = str(error).strip().rpartition(": ")[2]
        raise UserError(
            f"faiss makes no index {quoted(index)} of {len(vectors):,} vectors of {vectors.shape[1]} numbers: "
            f"{reason}. Give one of its factory strings, such as {EXACT_INDEX} (exact) or HNSW32."
        ) from None
    faiss.write_index(built, str(path))
    read, encode = faiss.read_index(str(path)), _encoder(model, folder)

    def search(histories: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # So many that top_n are left when all seen items are among them.
        scores, rows = read.search(encode(histories), min(top_n + seen.shape[1], len(vectors)))
        return _without_seen(rows + 1, scores, seen, top_n)

    files = {path.name: {"index": index, "metric": "inner product", "vectors": VECTORS}, "encoder.onnx": ENCODER}
    return Written(search, files, ("faiss-cpu", *ONNX), index == EXACT_INDEX)


WRITERS: dict[str, Callable[[SequentialModel, Path, int, str], Written]] = {
    "onnx": write_onnx,
    "pt2": write_pt2,
    "flat": write_flat,
    "faiss": write_faiss,
}


def _without_seen(items: np.ndarray, scores: np.ndarray, seen: np.ndarray, top_n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `top_n` of each list [B, k] that were not seen, in their order; shorter lists end in 0 and −inf."""
    left_out = (items[:, :, None] == seen[:, None, :]).any(2) | (items == 0)
    order = np.argsort(left_out, axis=1, kind="stable")[:, :top_n]
    items, scores, left_out = (np.take_along_axis(values, order, axis=1) for values in (items, scores, left_out))
    missing = ((0, 0), (0, top_n - items.shape[1]))
    return (
        np.pad(np.where(left_out, 0, items), missing),
        np.pad(np.where(left_out, -np.inf, scores), missing, constant_values=-np.inf).astype(np.float32),
    )


def _encoder(model: SequentialModel, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Write encoder.onnx; return the function that runs it."""
    session = _to_onnx(Encoder(model), folder / "encoder.onnx", ENCODER)
    return lambda histories: session.run(["queries"], {"histories": histories})[0]


def _to_onnx(program: Program, path: Path, described: dict[str, Any]) -> Any:
    """Write the program as ONNX, with named axes and tensors; return a session of ONNX Runtime that has read it."""
    runtime = _require("onnxruntime", "onnxruntime")
    for package in ONNX:
        _require(package, package)
    with torch.no_grad(), quiet():
        exported = torch.onnx.export(
            traced(program),
            program.sample(),
            input_names=list(described["inputs"]),
            output_names=list(described["outputs"]),
            dynamic_shapes=program.axes(),
            verbose=False,
        )
        assert exported is not None
        exported.save(path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _require(module: str, package: str) -> Any:
    """The module of an optional package; UserError where it is not installed."""
    from importlib import import_module

    if find_spec(module) is None:
        raise UserError(f"This format needs the package {package}: run `pip install 'csrec_dist[export]'`.")
    return import_module(module)
