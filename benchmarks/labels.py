"""Factored against dense fp32 labels of a run's own teachers: largest difference of logits, bytes, seconds to write.

    python benchmarks/labels.py runs/lastfm_gru4rec_paper

Prints one JSON line last.
"""

import argparse
import json
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from csrec_dist import models
from csrec_dist.data.stored import Dataset
from csrec_dist.distributed import Group
from csrec_dist.distributed.mesh import label_columns
from csrec_dist.labels import LabelCache, LabelMember, info, label_bytes, write_labels
from csrec_dist.runfolder import RunFolder

ITEMS = slice(0, None)


def main() -> None:
    """Label twice, compare row by row, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with trained teachers")
    options = parser.parse_args()
    run = RunFolder(options.run)
    dataset = Dataset(run.dataset_folder)
    names = sorted(name for name in run.trainings if name.startswith("teacher"))
    teachers = {k: models.load(options.run / "teachers" / name) for k, name in enumerate(names)}
    members = [LabelMember(name=name, width=teachers[k].config.width, fingerprint=name) for k, name in enumerate(names)]
    alone, column = Group((0,), 0), label_columns(len(names), 1)[0]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in ("factored", "dense"):
            begin = time.perf_counter()
            write_labels(
                Path(folder) / form,
                dataset,
                teachers,
                members,
                column,
                alone,
                alone,
                form=form,
                device=torch.device("cpu"),
            )
            found[f"{form}_seconds"] = round(time.perf_counter() - begin, 2)
            found[f"{form}_bytes"] = sum(path.stat().st_size for path in (Path(folder) / form).glob("*.safetensors"))
        difference, largest = compare(LabelCache(Path(folder) / "factored"), LabelCache(Path(folder) / "dense"))
        arithmetic = info(Path(folder) / "factored", 29_351)
    widths = [member.width for member in members]
    examples = dataset.splits["train"].num_examples
    bytes_at = {form: label_bytes(form, examples, 29_351, widths) for form in ("factored", "dense")}
    found |= {
        "largest_difference": difference,
        "largest_logit": largest,
        "ratio": round(found["dense_bytes"] / found["factored_bytes"], 1),
        "ratio_at_29351_items": round(bytes_at["dense"] / bytes_at["factored"], 1),
        "index_at_29351_items": arithmetic["ratio"],
    }
    print(json.dumps({"benchmark": "labels", "run": str(options.run), "date": str(date.today()), **found}))


def compare(factored: LabelCache, dense: LabelCache) -> tuple[float, float]:
    """Largest absolute difference between the two forms' logits, and the largest logit, over all examples."""
    difference = largest = 0.0
    for ids in torch.arange(factored.num_examples).split(1024):
        product, logits = (cache.read(ids).tile(slice(0, len(ids)), ITEMS) for cache in (factored, dense))
        difference = max(difference, float((product - logits).abs().max()))
        largest = max(largest, float(logits.abs().max()))
    return difference, largest


if __name__ == "__main__":
    main()
