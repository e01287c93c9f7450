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
GRAPH_BYTES = 64 << 20
"""Of weights that are written into the ONNX graph itself, which takes two copies of them in memory."""
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
    session, files = _to_onnx(TopItems(model, top_n), path, TOP_ITEMS)

    def search(histories: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        items, scores = session.run(["items", "scores"], {"histories": histories, "seen": seen})
        return items, scores

    return Written(search, files, ONNX)


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
    encode, files = _encoder(model, folder)

    def search(histories: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = np.pad(encode(histories) @ vectors.T, ((0, 0), (1, 0)), constant_values=-np.inf)
        np.put_along_axis(scores, seen, -np.inf, axis=1)
        items = np.argsort(-scores, axis=1, kind="stable")[:, :top_n]
        scores = np.take_along_axis(scores, items, axis=1)
        return np.where(scores == -np.inf, 0, items), scores

    return Written(search, {path.name: {"vectors": VECTORS}} | files, ONNX)


def write_faiss(model: SequentialModel, folder: Path, top_n: int, index: str) -> Written:
    """items.faiss, an index of the item vectors by their inner product with queries, and encoder.onnx."""
    faiss = _require("faiss", "faiss-cpu")
    table, num_items, path = model.item_table, model.num_items, folder / "items.faiss"
    width = item_vectors(table, slice(0, 0)).shape[1]
    try:
        built = faiss.index_factory(width, index, faiss.METRIC_INNER_PRODUCT)
        if not built.is_trained:
            built.train(item_vectors(table).numpy())
        for first in range(0, num_items, BLOCK_ROWS):
            built.add(item_vectors(table, slice(first, first + BLOCK_ROWS)).numpy())
    except RuntimeError as error:
        reason = str(error).strip().rpartition(": ")[2]
        raise UserError(
            f"faiss makes no index {quoted(index)} of {num_items:,} vectors of {width} numbers: "
            f"{reason}. Give one of its factory strings, such as {EXACT_INDEX} (exact) or HNSW32."
        ) from None
    faiss.write_index(built, str(path))
    del built  # an index has all vectors in memory: one at a time
    encode, files = _encoder(model, folder)
    read = faiss.read_index(str(path))

    def search(histories: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # So many that top_n are left when all seen items are among them.
        scores, rows = read.search(encode(histories), min(top_n + seen.shape[1], num_items))
        return _without_seen(rows + 1, scores, seen, top_n)

    described = {path.name: {"index": index, "metric": "inner product", "vectors": VECTORS}}
    return Written(search, described | files, ("faiss-cpu", *ONNX), index == EXACT_INDEX)


WRITERS: dict[str, Callable[[SequentialModel, Path, int, str], Written]] = {
    "onnx": write_onnx,
    "pt2": write_pt2,
    "flat": write_flat,
    "faiss": write_faiss,
}


def _without_seen(items: np.ndarray, scores: np.ndarray, seen: np.ndarray, top_n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `top_n` of each list [B, k] that were not seen, in their order; shorter lists end in 0 and −inf."""
    of_rows = [np.isin(of_row, numbers) for of_row, numbers in zip(items, seen, strict=True)]
    left_out = np.stack(of_rows) | (items == 0)
    order = np.argsort(left_out, axis=1, kind="stable")[:, :top_n]
    items, scores, left_out = (np.take_along_axis(values, order, axis=1) for values in (items, scores, left_out))
    missing = ((0, 0), (0, top_n - items.shape[1]))
    return (
        np.pad(np.where(left_out, 0, items), missing),
        np.pad(np.where(left_out, -np.inf, scores), missing, constant_values=-np.inf).astype(np.float32),
    )


def _encoder(model: SequentialModel, folder: Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """Write encoder.onnx; return the function that runs it, and what its files are."""
    session, files = _to_onnx(Encoder(model), folder / "encoder.onnx", ENCODER)
    return lambda histories: session.run(["queries"], {"histories": histories})[0], files


def _to_onnx(program: Program, path: Path, described: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Write the program as ONNX, with named axes and tensors; what its files are, and a session that has read them.

    Histories are of item numbers, so the graph needs the item table. A large one is written beside the graph, a tensor
    at a time, and ONNX Runtime maps it from there.
    """
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
        is_large = sum(each.numel() * each.element_size() for each in program.parameters()) > GRAPH_BYTES
        exported.save(path, external_data=is_large)
        del exported
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    beside = {f"{path.name}.data": "the tensors of the graph, which looks for them beside it"} if is_large else {}
    return session, {path.name: described} | beside


def _require(module: str, package: str) -> Any:
    """The module of an optional package; UserError where it is not installed."""
    from importlib import import_module

    if find_spec(module) is None:
        raise UserError(
            f"This format needs the package {package}: run `pip install onnx onnxscript onnxruntime faiss-cpu`."
        )
    return import_module(module)
