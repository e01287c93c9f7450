"""DeepSpeed's settings: a JSON file of the user, checked, with what the training itself decides added."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from csrec_dist.distributed.engines.base import Updates
from csrec_dist.errors import UserError

STAGES = (1, 2, 3)
OURS = {
    "train_batch_size": "training.batch_size decides it",
    "train_micro_batch_size_per_gpu": "training.batch_size and training.accumulate decide it",
    "gradient_accumulation_steps": "training.accumulate decides it",
    "gradient_clipping": "training.clip_norm decides it",
    "optimizer": "it is Adam with training.learning_rate",
    "scheduler": "training.schedule decides it",
    "fp16": "training.precision is fp32 or bf16",
    "bf16": "training.precision decides it",
    "torch_autocast": "training.precision decides it",
    "amp": "training.precision decides it",
}
"""Keys of DeepSpeed that a file may not set, or only to "auto", and why."""


def check_deepspeed(path: Path | str) -> None:
    """Refuse to start where DeepSpeed is missing or its settings are wrong; raises UserError."""
    if find_spec("deepspeed") is None:
        raise UserError(
            "distributed.engine is deepspeed, which is not installed. Install it with "
            "`pip install 'csrec_dist[deepspeed]'`, or set distributed.engine=fsdp."
        )
    read_settings(path)


def read_settings(path: Path | str) -> dict[str, Any]:
    """What the file says, without what it leaves to others ("auto").

    Raises:
        UserError: it is missing or not JSON, has no ZeRO stage 1 to 3, or sets what the training decides.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"distributed.deepspeed: the file {path} cannot be read: {error.strerror}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"distributed.deepspeed: {path} is not valid JSON: {error}.") from None
    settings = _without_auto(found) if isinstance(found, dict) else {}
    zero = settings.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in STAGES or isinstance(stage, bool):
        raise UserError(
            f"distributed.deepspeed: {path} has the ZeRO stage {stage}; set zero_optimization.stage to 1, 2 or 3, or "
            "distributed.engine to ddp."
        )
    if refused := sorted(OURS.keys() & settings.keys()):
        reasons = "; ".join(f"{key}: {OURS[key]}" for key in refused)
        raise UserError(f'distributed.deepspeed: {path} sets {reasons}. Leave it out, or say "auto".')
    return settings


def complete(settings: dict[str, Any], updates: Updates) -> dict[str, Any]:
    """All settings of an engine. The size of a micro-batch is not used: shares of a batch differ in size."""
    return settings | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": updates.accumulate,
        "gradient_clipping": updates.clip_norm or 0.0,
        "zero_force_ds_cpu_optimizer": False,
    }


def _without_auto(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without "auto", and without sections in which nothing else stands."""
    shortened = {key: _without_auto(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: value for key, value in shortened.items() if value != "auto" and (value != {} or not settings[key])}
