"""What a benchmark has measured, as it stands in its JSON file. Reading it imports no torch.

Lists have a number for each rank, in rank order. GB are 10⁹ bytes, TFLOP 10¹² operations.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from csrec_dist.errors import UserError
from csrec_dist.files import read_json, write_json

TITLE = "csrec-dist bench"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Machine(_Value):
    """A machine, and the ranks on it; `cpus` are those that a rank may use."""

    name: str
    processor: str
    cpus: int
    memory_gib: float
    ranks: list[int]


class Log(_Value):
    """Sizes of the log that was trained on; `label_bytes` are those of its soft labels, 0 for a method without."""

    users: int
    items: int
    window: int
    windows: int
    examples: int
    label_bytes: int


class AllReduce(_Value):
    """The sum over all ranks of a tensor as large as a rank's gradients of the student, median of several."""

    bytes: int
    milliseconds: float

    @property
    def gb_per_second(self) -> float:
        """Bytes of the tensor over the time; the ranks of a ring send 2 (ranks − 1) / ranks as much each."""
        return self.bytes / self.milliseconds / 1e6


class Limits(_Value):
    """What the machines did, all ranks at once, with nothing but one thing to do."""

    product: str
    peak_teraflops: list[float]
    disk_bytes: int
    disk_write_gb_per_second: float
    disk_read_gb_per_second: float
    all_reduce: AllReduce | None


class StepTimes(_Value):
    """Milliseconds of a step over the `num` steps of all ranks that count."""

    num: int
    p50: float
    p90: float
    p99: float
    largest: float


class StageFigures(_Value):
    """A stage. `seconds` are those of its slowest rank from beginning to end, `examples` all that each rank worked on.

    In training, the rates, shares of time and `steps` are those of the steps after the warm-up; in other stages they
    are those of the whole stage. `labels_gb_per_second` are written by label, and read by distill.
    """

    seconds: float
    examples: list[int]
    examples_per_second: list[float]
    steps: StepTimes | None
    data_wait: list[float]
    rank_wait: list[float]
    teraflops: list[float]
    peak_memory_mib: list[float]
    labels_gb_per_second: float | None
    one_rank_examples_per_second: float | None

    @property
    def rate(self) -> float:
        """Examples a second of all ranks."""
        return sum(self.examples_per_second)

    @property
    def speedup(self) -> float | None:
        """How many times as many examples a second all ranks do as one rank alone."""
        return self.rate / self.one_rank_examples_per_second if self.one_rank_examples_per_second else None


class Result(_Value):
    """One benchmark. `one_rank_problem` says why there is no speedup where one rank was tried in vain."""

    benchmark: Literal["csrec-dist bench"] = "csrec-dist bench"
    format_version: Literal[1] = 1
    date: str
    machines: list[Machine]
    threads: list[int]
    versions: dict[str, str]
    warmup_steps: int
    log: Log
    settings: dict[str, Any]
    limits: Limits
    stages: dict[str, StageFigures] = Field(min_length=1)
    one_rank_problem: str | None = None

    @property
    def num_ranks(self) -> int:
        """Ranks of the benchmark."""
        return len(self.threads)

    @property
    def peak_teraflops(self) -> float:
        """TFLOP/s of the large product, of all ranks."""
        return sum(self.limits.peak_teraflops)

    def write(self, path: Path) -> None:
        """Write the JSON file."""
        write_json(path, self.model_dump(mode="json"))


def read_result(path: Path) -> Result:
    """The result in a file; UserError when it is not one."""
    values = read_json(path)
    if not isinstance(values, dict) or values.get("benchmark") != TITLE:
        raise UserError(f"{path} is not a result of `{TITLE}`; give the JSON files that it wrote.")
    try:
        return Result.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path} is not a result that this version reads ({'.'.join(map(str, first['loc']))}: {first['msg']}); run "
            "the benchmark again."
        ) from None
