"""Stage prepare: from the raw log to the dataset folder, on rank 0."""

from typing import Any

from csrec_dist.data.prepare import identify, prepare
from csrec_dist.data.stored import Dataset
from csrec_dist.errors import UserError
from csrec_dist.stages.run import Run


def inputs(run: Run) -> dict[str, Any]:
    """Dataset options and the identity of the log."""
    options = run.config.dataset
    if options.path:
        return {"dataset": {"path": Dataset(options.path).fingerprint}}
    source = {key: value for key, value in identify(options).items() if key != "name"}
    return {"dataset": options.model_dump(mode="json", exclude={"source", "path"}), "source": source}


def work(run: Run, inputs: dict[str, Any]) -> dict[str, Any]:
    """From the raw log to the dataset folder, on rank 0."""

    def on_main() -> dict[str, Any]:
        options, folder = run.config.dataset, run.config.dataset_folder
        if not options.path and not (folder / "dataset.json").exists():
            with run.log("prepare") as log:
                prepare(options, folder, log.say)
        found = Dataset(folder).fingerprint
        if not options.path and found != inputs["source"]["fingerprint"]:
            raise UserError(f"{folder} was prepared from another log or with other options; use --restart prepare.")
        return {"fingerprint": found}

    return run.runtime.on_main(on_main)
