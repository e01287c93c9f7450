"""The commands that take a trained model elsewhere: export it to files of other programs, serve it over HTTP."""

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from csrec_dist.cli.parsing import Commands, add
from csrec_dist.errors import UserError
from csrec_dist.export import FORMATS
from csrec_dist.threads import choose as choose_threads


def add_export(commands: Commands) -> None:
    """`export`."""
    parser = add(
        commands, "export", _export, "write the student for other programs, checked on the dataset's histories"
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        help="onnx and pt2 (torch.export): encoder and exact best items in one graph; flat: item vectors as "
        "safetensors, faiss: an index of them, both with the encoder as ONNX (default onnx)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="(default: export/FORMAT in the run's folder)")
    parser.add_argument(
        "-n",
        "--top-n",
        type=int,
        default=100,
        help="items of the lists in onnx and pt2, and of the check (default 100)",
    )
    parser.add_argument(
        "--index",
        default="Flat",
        metavar="FACTORY",
        help="faiss's index: Flat is exact, of others such as HNSW32 the recall is measured (default Flat)",
    )


def _export(options: argparse.Namespace) -> int:
    choose_threads()
    from csrec_dist.distributed.joining import processes
    from csrec_dist.recommend.recommender import Recommender

    folder = options.output or options.run / "export" / options.format

    def export() -> dict[str, Any]:
        # By the rank that writes: the others need no memory for it, and this one none for the model.
        recommender = Recommender.of_run(options.run, is_mapped=True)
        return recommender.write_export(folder, options.format, options.top_n, options.index)

    with processes() as ranks:
        check = ranks.on_main(export)["check"]
        if ranks.is_main:
            print(f"wrote {folder}\n{_checked(check)}")
    return 0


def _checked(check: Mapping[str, Any]) -> str:
    """What the check of an export has found, in a line."""
    about = f"{check['lists']:,} lists after {check['histories']:,} histories"
    if "largest_difference" not in check:
        recall = ", ".join(f"{name} {value:.4f}" for name, value in check.items() if name.startswith("recall"))
        return f"measured {about}: {recall} against the model's exact lists"
    return (
        f"checked {about}: equal to the model's, {check['ties_in_other_order']:,} of {check['items']:,} items in "
        f"another order among ties; scores differ by at most {check['largest_difference']:.1e} of "
        f"{check['largest_score']:.3g}"
    )


def add_serve(commands: Commands) -> None:
    """`serve`."""
    parser = add(commands, "serve", _serve, "answer requests for lists over HTTP, until it is stopped")
    parser.add_argument(
        "run", help="folder of a finished run, of Recommender.save_pretrained, or OWNER/NAME[@COMMIT] of the Hub"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port (default 8000; 0: any free one)")
    parser.add_argument("--max-body", type=int, default=1 << 20, metavar="BYTES", help="of a request (default 1 MiB)")
    parser.add_argument("--max-top-n", type=int, default=1000, metavar="N", help="items of a list (default 1000)")
    parser.add_argument("--max-lists", type=int, default=256, metavar="N", help="lists of a request (default 256)")


def _serve(options: argparse.Namespace) -> int:
    missing = [package for package in ("fastapi", "uvicorn") if find_spec(package) is None]
    if missing:
        raise UserError(f"serve needs the package {missing[0]}: run `pip install fastapi uvicorn`.")
    limits = (options.max_body, options.max_top_n, options.max_lists)
    if min(limits) < 1:
        raise UserError(
            f"--max-body, --max-top-n and --max-lists must be at least 1, not {', '.join(map(str, limits))}."
        )
    choose_threads()
    from csrec_dist.recommend import Recommender
    from csrec_dist.serve import Limits, serve

    try:
        serve(Recommender.from_pretrained(options.run), options.host, options.port, Limits(*limits))
    except KeyboardInterrupt:  # uvicorn has answered what was asked before
        return 130
    return 0
