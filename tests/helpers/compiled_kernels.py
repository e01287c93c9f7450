"""Compiles the Triton kernels for a GPU that is not there, and says what they take of it.

Run as a script, it prints one JSON object for each kernel of the losses, precision, loss and pair of widths of the
table of configurations, and for the kernel of evaluation; with `--check` it fails where one takes too much. Triton must
not be interpreted in the process.
"""

import json
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from csrec_dist.evaluation.kernels import visit_kernel
from csrec_dist.evaluation.visit import CHUNKS_OF_PART, LANES
from csrec_dist.losses import kernels
from csrec_dist.losses.configurations import Blocks, chunk, configuration
from csrec_dist.losses.fused import ROWS_OF_MERGE

MOST_SHARED, MOST_SPILLS = 227 * 1024, 48
"""Bytes of shared memory that a multiprocessor gives a program, and spilled stores that are few."""
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INTEGERS = {"num_examples", "num_items", "items_of_split", "first_row", "first_item"}
KERNELS = {"statistics": kernels.statistics_kernel, "coefficients": kernels.coefficients_kernel}


def resources(name: str, blocks: Blocks, width: int, label_width: int, loss: int, bias: bool = True) -> dict[str, Any]:
    """Registers of a thread, spilled stores, bytes of shared memory, and the products that the machine code has."""
    function: Any = KERNELS[name]
    constants = {
        "D": width, "K": label_width, "LOSS": loss, "HAS_BIAS": bias, "HAS_LABEL_BIAS": bias, "BN": blocks.examples,
        "BV": blocks.items, "D_CHUNK": chunk(width, blocks), "K_CHUNK": chunk(label_width, blocks), "MODE": blocks.mode,
    }  # fmt: skip
    signature, constexprs, attributes = {}, {}, {}
    for place, argument in enumerate(function.arg_names):
        if argument in constants:
            signature[argument], constexprs[(place,)] = "constexpr", constants[argument]
        elif argument in INTEGERS:
            signature[argument] = "i32"
        elif argument == "label_scale":
            signature[argument] = "fp32"
        else:
            bf16 = argument == "coefficients" and blocks.mode == "bf16"
            signature[argument] = "*i64" if argument == "targets" else "*bf16" if bf16 else "*fp32"
            attributes[(place,)] = [["tt.divisibility", 16]]
    return _compiled(ASTSource(function, signature, constexprs, attributes), blocks.warps, blocks.stages)


def visit_resources(num_targets: int, log_sums: bool) -> dict[str, Any]:
    """The same of the kernel that visits a tile of logits in evaluation."""
    function: Any = visit_kernel
    constants = {"LANES": LANES, "NUM_TARGETS": num_targets, "LOG_SUMS": log_sums, "CHUNKS": CHUNKS_OF_PART}
    kinds = {"counts": "*i32", "num_rows": "i32", "num_chunks": "i32", "num_items": "i32"}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in function.arg_names}
    constexprs = {(function.arg_names.index(name),): value for name, value in constants.items()}
    attributes = {(place,): [["tt.divisibility", 16]] for place in range(5)}
    return _compiled(ASTSource(function, signature, constexprs, attributes), 4, 1)


def merge_resources(loss: int) -> dict[str, Any]:
    """The same of the kernel that adds up the sums of the splits."""
    function: Any = kernels.merge_kernel
    constants = {"LOSS": loss, "BN": ROWS_OF_MERGE}
    kinds = {"num_examples": "i32", "num_splits": "i32"}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in function.arg_names}
    constexprs = {(function.arg_names.index(name),): value for name, value in constants.items()}
    attributes = {(place,): [["tt.divisibility", 16]] for place in range(2)}
    return _compiled(ASTSource(function, signature, constexprs, attributes), 4, 1)


def _compiled(source: ASTSource, warps: int, stages: int) -> dict[str, Any]:
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages}
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+)", usage)
    assert found is not None, usage
    counts = {kind: len(re.findall(rf"\b{kind}\b", code)) for kind in ("STL", "HGMMA", "HMMA", "FFMA", "LDL")}
    return {"registers": int(found[1]), "shared": compiled.metadata.shared, **counts}


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def fits(about: dict[str, Any]) -> bool:
    """Whether a kernel has room on the chip, few spilled registers, and products on the tensor cores."""
    has_room = about["shared"] <= MOST_SHARED and about["STL"] <= MOST_SPILLS
    return has_room and (about["HGMMA"] > 0 or about["kernel"] in ("visit", "merge"))


def main() -> None:
    """Print what every kernel takes."""
    widths = (64, 0, 0), (64, 128, 1), (64, 128, 2), (256, 512, 1)
    for precision, (width, label_width, loss) in product(("highest", "high", "medium"), widths):
        chosen = configuration(precision, width, label_width)  # type: ignore[arg-type]
        assert chosen is not None
        for name in KERNELS:
            about: dict[str, Any] = {"kernel": name, "precision": precision, "loss": loss}
            about |= {"width": width, "label_width": label_width}
            show(about | resources(name, getattr(chosen, name), width, max(label_width, 1), loss))
    for num_targets, log_sums in ((1, False), (2, True)):
        show({"kernel": "visit", "targets": num_targets, **visit_resources(num_targets, log_sums)})
    for loss in (0, 1, 2):
        show({"kernel": "merge", "loss": loss, **merge_resources(loss)})


def show(about: dict[str, Any]) -> None:
    """Print what a kernel takes; SystemExit where that is to be checked, and too much."""
    print(json.dumps(about), flush=True)
    if "--check" in sys.argv and not fits(about):
        raise SystemExit(f"under Triton {triton.__version__} this kernel takes too much")


if __name__ == "__main__":
    sys.exit(main())
