"""Whether a launcher has started what it was asked for, and what csrec_dist was told to run."""

from collections.abc import Mapping

from csrec_dist.errors import UserError

LAUNCH_HINT = (
    "Use `accelerate launch --multi_gpu --num_processes N -m csrec_dist ...` (with and without GPUs) "
    "or `torchrun --nproc_per_node N -m csrec_dist ...`."
)


LAUNCHER_ENGINES = {"DEEPSPEED": "deepspeed", "FSDP": "fsdp"}
"""What accelerate's launcher calls the engines that it can be started for."""


def check_launch(environ: Mapping[str, str], engine: str = "ddp", precision: str = "fp32") -> None:
    """Refuse a launcher that starts fewer processes than it was asked for, or for another engine or precision.

    `accelerate launch --cpu --num_processes N` (and a MULTI_CPU config) exports the address of a rendezvous and
    then starts one process without a rank.
    """
    if "ACCELERATE_MIXED_PRECISION" in environ and "MASTER_ADDR" in environ and "RANK" not in environ:
        raise UserError(
            "accelerate was asked for several processes but started one: its CPU launcher does not "
            f"start ranks. {LAUNCH_HINT}"
        )
    asked = environ.get("ACCELERATE_MIXED_PRECISION") or "no"
    if asked not in ("no", precision):
        raise UserError(
            f"The launcher asks for mixed precision {asked}, but training.precision, which decides, is {precision} "
            "(fp32 or bf16). Ask the launcher for `no`."
        )
    for name, meant in LAUNCHER_ENGINES.items():
        if environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" and engine != meant:
            raise UserError(
                f"The launcher was started for {name}, but distributed.engine is {engine}. Set distributed.engine to "
                f"{meant}, or start it without {name}. {LAUNCH_HINT}"
            )
