"""What each stage after prepare is made of: an unequal value is why a finished stage is not skipped. No torch."""

from pathlib import Path
from typing import Any

from csrec_dist.errors import UserError
from csrec_dist.files import fingerprint, sha256_file
from csrec_dist.models.weight_files import weight_files
from csrec_dist.runs.inputs import deciding, members_of
from csrec_dist.runs.run import Run


def weights_fingerprint(folder: Path) -> str:
    """16 digits that name a trained model's weights; UserError when there are none."""
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} has no trained model: model.safetensors is missing.")
    sums = [sha256_file(path) for path in files]
    return sums[0][:16] if len(sums) == 1 else fingerprint(sums)


def teach(run: Run) -> dict[str, Any]:
    """Dataset, members, and the keys that decide their training."""
    dataset = run.require("prepare").outputs["fingerprint"]
    if run.config.teachers.pretrained:
        found = [weights_fingerprint(Path(folder)) for folder in run.config.teachers.pretrained]
        return {"dataset": dataset, "pretrained": found}
    return {"dataset": dataset, "members": members_of(run.config), **deciding(run.config, "teach")}


def label(run: Run) -> dict[str, Any]:
    """Dataset, the labelling members' weights, and the keys that decide what is made of them."""
    weights = run.require("teach").outputs["members"]
    return {
        "dataset": run.require("prepare").outputs["fingerprint"],
        "members": {name: weights[name] for name in run.config.labelling_names},
        **deciding(run.config, "label"),
    }


def distill(run: Run) -> dict[str, Any]:
    """Dataset, the labels where there are some, and the keys that decide the student."""
    labels = {"labels": run.require("label").outputs} if run.config.num_members else {}
    return {"dataset": run.require("prepare").outputs["fingerprint"], **labels} | deciding(run.config, "distill")


def baseline(run: Run) -> dict[str, Any]:
    """Dataset, and the keys that decide a student trained on one-hot labels."""
    return {"dataset": run.require("prepare").outputs["fingerprint"]} | deciding(run.config, "baseline")


def evaluate(run: Run) -> dict[str, Any]:
    """Dataset, all weights and the options of the evaluation."""
    inputs: dict[str, Any] = {
        "dataset": run.require("prepare").outputs["fingerprint"],
        "student": run.require("distill").outputs["weights"],
        **deciding(run.config, "evaluate"),
    }
    if run.config.num_members:
        inputs["members"] = run.require("teach").outputs["members"]
    if run.config.baseline:
        inputs["base"] = run.require("baseline").outputs["weights"]
    return inputs
