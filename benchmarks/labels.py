"""Forms of soft labels of a run's own teachers: bytes, seconds to write, and what each loses.

    python benchmarks/labels.py runs/lastfm_gru4rec_paper --temperatures 1 3 --keep 64 256 1024

Prints a line for each form and number type, and one JSON line last.
"""

import argparse
import json
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from csrec_dist import models
from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.layout import LabelRanks
from csrec_dist.labels import DenseLabels, FactoredLabels, LabelCache, LabelMember, Reading, label_bytes, write_labels
from csrec_dist.labels.options import FORMS, LabelOptions
from csrec_dist.models import SequentialModel
from csrec_dist.runs.run import Run

ITEMS = slice(0, None)


def main() -> None:
    """Measure, label in every form, compare row by row, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with trained teachers")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--keep", type=int, nargs="+", default=[256])
    options = parser.parse_args()
    teachers = Teachers(options.run)
    with tempfile.TemporaryDirectory() as folder:
        errors = teachers.errors(Path(folder) / "auto", options.temperatures, options.keep)
        written = {
            f"{form} {dtype}": teachers.write(Path(folder) / f"{form}-{dtype}", form, dtype, options.keep[0])
            for form, dtype in (("factored", "float32"), ("factored", "float16"), ("dense", "float32"))
        }
        written["topk float16"] = teachers.write(
            Path(folder) / "topk", "topk", "float16", options.keep[0], kl="forward"
        )
        difference, largest = compare(*(LabelCache(Path(folder) / f"{form}-float32") for form in ("factored", "dense")))
    for line in errors:
        print(line)
    examples = teachers.dataset.splits["train"].num_examples
    at_29351 = {form: label_bytes(form, examples, 29_351, teachers.widths, keep=options.keep[0]) for form in FORMS}
    found = {
        "written": written,
        "largest_difference_of_factored_and_dense": difference,
        "largest_logit": largest,
        "bytes_at_29351_items": at_29351,
        "errors": errors,
    }
    print(json.dumps({"benchmark": "labels", "run": str(options.run), "date": str(date.today()), **found}))


class Teachers:
    """The trained members of a run, on this process alone."""

    def __init__(self, run: Path) -> None:
        folder = Run.open(run)
        self.dataset = Dataset(folder.dataset_folder)
        names = sorted(name for name in folder.trainings if name.startswith("teacher"))
        loaded = [models.load(run / "teachers" / name) for name in names]
        self.models: dict[int, SequentialModel] = dict(enumerate(loaded))
        self.widths = [model.config.width for model in loaded]
        self.members = [LabelMember(name=n, width=w, fingerprint=n) for n, w in zip(names, self.widths, strict=True)]

    def write(self, folder: Path, form: str, dtype: str, keep: int, **reading: Any) -> dict[str, float]:
        """Label the train split; seconds and bytes."""
        options = LabelOptions.model_validate({"form": form, "dtype": dtype, "keep": keep})
        begin = time.perf_counter()
        write_labels(
            folder, self.dataset, self.models, self.members, LabelRanks.alone(len(self.members)),
            device=torch.device("cpu"), options=options, reading=Reading(**reading),
        )  # fmt: skip
        seconds = round(time.perf_counter() - begin, 2)
        return {"seconds": seconds, "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors"))}

    def errors(self, folder: Path, temperatures: list[float], keeps: list[int]) -> list[dict[str, Any]]:
        """What every form and number type loses at every temperature, in the forward direction."""
        found: dict[str, dict[str, Any]] = {}
        for place, (temperature, keep) in enumerate((t, k) for t in temperatures for k in keeps):
            self.write(folder / f"{place}", "auto", "auto", keep, temperature=temperature, kl="forward")
            measured = LabelCache(folder / f"{place}").index.measured
            assert measured is not None
            for error in measured.errors:
                line = {"temperature": temperature, **error.model_dump(exclude_none=True)}
                found[json.dumps(line)] = line
        return list(found.values())


def compare(factored: LabelCache, dense: LabelCache) -> tuple[float, float]:
    """Largest absolute difference between the two forms' logits, and the largest logit, over all examples."""
    difference = largest = 0.0
    for ids in torch.arange(factored.num_examples).split(1024):
        product, logits = factored.rows(ids), dense.rows(ids)
        assert isinstance(product, FactoredLabels)
        assert isinstance(logits, DenseLabels)
        difference = max(difference, float((product.tile(slice(0, len(ids)), ITEMS) - logits.logits).abs().max()))
        largest = max(largest, float(logits.logits.abs().max()))
    return difference, largest


if __name__ == "__main__":
    main()
