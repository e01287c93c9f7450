"""The `distributed` section of the config: engine and layout of the processes."""

from typing import Literal

from pydantic import Field

from csrec_dist.errors import UserError
from csrec_dist.options import Options


class DistributedOptions(Options):
    """`distributed`: engine and layout of the processes."""

    engine: Literal["ddp", "fsdp", "deepspeed"] = Field(
        "ddp", description="How the ranks of a model share its parameters, gradients and optimizer states."
    )
    deepspeed: str | None = Field(
        None,
        description="JSON file with the settings of engine deepspeed (`csrec-dist init zero2` writes one); "
        "null: the file of `accelerate launch --deepspeed_config_file`.",
    )
    catalog_parallel: int = Field(
        1,
        ge=1,
        strict=True,
        description="Number of ranks that share one item table, for catalogs beyond one device's memory.",
    )
    export: Literal["plain", "sharded"] = Field(
        "plain",
        description="Files of a model trained in slices: one model.safetensors, or one file per slice and an index.",
    )
    reassign: bool = Field(
        True,
        description="Ranks whose member is trained take the next one or join another's training; false: each member "
        "keeps its ranks, so that runs are reproducible bit for bit.",
    )
    deterministic: bool = Field(
        True,
        description="Take sums in the same order every time, so that runs are reproducible bit for bit; false is "
        "faster on some GPUs.",
    )
    log_dir: str | None = Field(
        None,
        description="Folder for a file of each rank, rank-00003.log, with the time and text of all that it says, of "
        "which rank 0 alone is shown; `--log-dir` sets it, too.",
    )
    timeout_minutes: float = Field(
        30, gt=0, le=1e6, description="Minutes a rank waits for one that makes no progress before it gives up."
    )

    @property
    def shares_out_model(self) -> bool:
        """Whether ranks share out a model's weights, gradients or states, which is done for want of memory."""
        return self.engine != "ddp" or self.catalog_parallel > 1


def check_catalog_parallel(num_ranks: int, catalog_parallel: int) -> None:
    """Refuse a size of catalog groups that does not divide the number of ranks."""
    if not 1 <= catalog_parallel <= num_ranks or num_ranks % catalog_parallel:
        fitting = [str(size) for size in range(1, num_ranks + 1) if num_ranks % size == 0]
        raise UserError(
            f"distributed.catalog_parallel: {catalog_parallel} slices of the catalog do not fit {num_ranks} ranks; "
            f"start a multiple of {catalog_parallel} ranks, or choose {' or '.join(fitting)}."
        )
