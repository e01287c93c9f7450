"""The `distributed` section of the config: engine and layout of the processes."""

from typing import Literal

from pydantic import Field

from csrec_dist.options import Options


class DistributedOptions(Options):
    """`distributed`: engine and layout of the processes."""

    engine: Literal["ddp", "fsdp", "deepspeed"] = Field(
        "ddp", description="how the ranks of a model share its parameters, gradients and optimizer states"
    )
    deepspeed: str | None = Field(
        None,
        description="settings of engine deepspeed, a JSON file with the ZeRO stage; see configs/deepspeed; null: that "
        "of `accelerate launch --deepspeed_config_file`",
    )
    catalog_parallel: int = Field(
        1, ge=1, strict=True, description="ranks that share one item table, for catalogs beyond one device's memory"
    )
    export: Literal["plain", "sharded"] = Field(
        "plain",
        description="files of a model trained in slices: one model.safetensors, or one for each slice and an index",
    )
    reassign: bool = Field(
        True,
        description="ranks whose member is trained take the next one or join another's training; false: each member "
        "keeps its ranks, for runs that are equal bit by bit",
    )
    deterministic: bool = Field(
        True,
        description="sums are taken in the same order every time, for runs that are equal bit by bit; false: faster on "
        "some GPUs",
    )
    timeout_minutes: float = Field(
        30, gt=0, le=1e6, description="how long a rank waits for one that does not move before it gives up"
    )
