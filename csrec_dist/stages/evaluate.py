"""Stage evaluate: every trained model of the run on validation and test."""

from pathlib import Path
from typing import Any

from csrec_dist import models
from csrec_dist.config import Config
from csrec_dist.files import write_json
from csrec_dist.stages.run import Run, evaluate_model


def trained_models(run: Run) -> dict[str, Path]:
    """Folder of each trained model of the run: the student first."""
    folders = {"student": run.folder / "student"}
    if run.config.baseline:
        folders["base"] = run.folder / "base"
    return folders | {name: run.member_folder(name) for name in run.member_names}


def inputs(run: Run) -> dict[str, Any]:
    """Dataset, all weights and the options of the evaluation."""
    inputs = {
        "dataset": run.book.require("prepare").outputs["fingerprint"],
        "student": run.book.require("distill").outputs["weights"],
        "evaluation": run.config.evaluation.model_dump(mode="json"),
    }
    if run.config.method != "base":
        inputs["members"] = run.book.require("teach").outputs["members"]
    if run.config.baseline:
        inputs["base"] = run.book.require("baseline").outputs["weights"]
    return inputs


def work(run: Run, inputs: dict[str, Any]) -> dict[str, Any]:
    """Validation and test metrics of the student, the baseline and the members, into metrics.json."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    with run.log("evaluate") as log:
        folders = trained_models(run)
        log.expect(len(folders))
        for name, folder in folders.items():
            model = models.load(folder).to(run.runtime.device)
            found[name] = {split: evaluate_model(run, model, split, run.runtime.world) for split in ("valid", "test")}
            log.advance(note=name)
            shown = ", ".join(f"{metric} {found[name]['test'][metric]:.4f}" for metric in ("recall@10", "ndcg@10"))
            log.say(f"{name}: test {shown}")
        log.hparams(hparams(run.config), found["student"]["test"])
        log.scalars({f"test/{name}": value for name, value in found["student"]["test"].items()}, 0)
    if run.runtime.is_main:
        write_json(run.folder / "metrics.json", {**found["student"], "models": found})
    return {"test": found["student"]["test"]}


def hparams(config: Config) -> dict[str, Any]:
    """The settings that TensorBoard's HParams page shows."""
    shown: dict[str, Any] = {"method": config.method, "seed": config.seed}
    for section in ("model", "training"):
        shown |= {f"{section}.{key}": value for key, value in config.dump()[section].items() if value is not None}
    return shown
