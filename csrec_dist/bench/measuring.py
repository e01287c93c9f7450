"""A benchmark in its order: a log, a run that warms up, the run that is measured, the limits, and a run on one rank."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path
from typing import Any

import torch

from csrec_dist.bench import limits
from csrec_dist.bench.figures import stage_figures
from csrec_dist.bench.flops import RunFlops, run_flops
from csrec_dist.bench.machines import machines_of, versions
from csrec_dist.bench.result import AllReduce, Limits, Log, Result, StageFigures
from csrec_dist.bench.settings import Settings, batch_size_of, write_log
from csrec_dist.bench.steps import MeasuredRun
from csrec_dist.config import Config
from csrec_dist.data.order import EpochOrder, RowSample
from csrec_dist.distributed import Runtime
from csrec_dist.errors import SharedUserError, UserError
from csrec_dist.files import flatten, make_folder, require_replaceable
from csrec_dist.labels import read_index
from csrec_dist.plan import ModelSize
from csrec_dist.runs.pipeline import work_on
from csrec_dist.runs.run import stage_names

PLACES = {"name", "output", "dataset.source", "dataset.path"}
"""Keys that say where something is, which does not make two benchmarks differ."""


def measure(
    settings: Settings, runtime: Runtime, output: Path, say: Callable[[str], None], *, keep_threads: bool
) -> Result:
    """Do the benchmark; every rank calls this, and every rank gets the result of rank 0.

    All files lie in a new folder beside `output` until the end. `say` is called on rank 0 with what begins.

    Raises:
        UserError: a setting does not fit, or the log is too small for a training to have a step that counts.
    """
    with _work_folder(runtime, output) as folder:
        tell = say if runtime.is_main else lambda text: None
        result = _Benchmark(settings, runtime, folder, tell, keep_threads).result()
        return Result.model_validate(runtime.world.broadcast_object(result.model_dump(mode="json")))


@contextmanager
def _work_folder(runtime: Runtime, output: Path) -> Iterator[Path]:
    """A new folder beside `output` that all ranks see, and that goes at the end, also after an error."""

    def make() -> str:
        require_replaceable(output)
        make_folder(output.parent)
        return tempfile.mkdtemp(prefix=".csrec-bench-", dir=output.parent.resolve())

    folder = Path(runtime.on_main(make))
    try:
        yield folder
        runtime.world.barrier()
    finally:
        if runtime.is_main:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Benchmark:
    settings: Settings
    runtime: Runtime
    folder: Path
    tell: Callable[[str], None]
    keep_threads: bool

    def result(self) -> Result:
        """All that is measured, in the order of the measurements."""
        config = self.settings.measured(self.runtime.world_size, self.folder)
        run = MeasuredRun(config, self.runtime)
        self.tell("preparing the log")
        self._prepare(run)
        self.tell("warming up")
        self._warm_up(run)
        for stage in _measured_stages(config):
            self.tell(f"measuring {stage}")
            work_on(run, [stage], keep_threads=self.keep_threads)
        self.tell("measuring a product, the disk and collectives alone")
        result = self._of_run(run)
        if not self.settings.one_rank or self.runtime.world_size == 1:
            return result
        self.tell("measuring one rank of this machine alone")
        return self._beside_one_rank(run.config, result)

    def _write_log(self, name: str, num_users: int, num_items: int, window: int) -> None:
        self.runtime.on_main(lambda: write_log(self.folder / name, num_users, num_items, window))

    def _prepare(self, run: MeasuredRun) -> None:
        """The dataset that is measured; a training without a step that counts is refused before hours of work."""
        config, settings = run.config, self.settings
        if settings.config is None:
            num_users = (settings.warmup + settings.steps) * batch_size_of(config)
            self._write_log("log.parquet", num_users, settings.sizes.items, config.dataset.window)
        work_on(run, ["prepare"])
        members = () if config.teachers.pretrained else config.module.members
        samples = [RowSample(member.sample, member.seed) for member in members]
        rows, batch_size = run.dataset.splits["train"].shard_rows, run.training.batch_size
        num_steps = min(EpochOrder(rows, batch_size, 0, 0, sample).num_steps for sample in (None, *samples))
        if num_steps <= settings.warmup:
            raise SharedUserError(
                f"The log has {num_steps} steps of {batch_size} windows for a training, of which the first "
                f"{settings.warmup} do not count. Give a larger log, a smaller training.batch_size or a "
                "smaller --warmup."
            )
        if config.teachers.pretrained:
            work_on(run, ["teach"])  # only copies them, with vectors for the items that are new to them

    def _warm_up(self, run: MeasuredRun) -> None:
        """Do all stages with the same models and batches on a small log: what a process does once is not measured."""
        names = run.config.member_names if run.config.teachers.pretrained else []
        members = [run.member_folder(name) for name in names]
        config = self.settings.warming_up(run.config, run.dataset.window, self.runtime.world_size, self.folder, members)
        num_users = max(self.settings.warmup * batch_size_of(config), run.dataset.num_shards)
        self._write_log("warmup.parquet", num_users, run.dataset.num_items, config.dataset.window)
        work_on(MeasuredRun(config, self.runtime), keep_threads=self.keep_threads)

    def _of_run(self, run: MeasuredRun) -> Result:
        runtime, dataset = self.runtime, run.dataset
        train, label_bytes = dataset.splits["train"], _label_bytes(run)
        flops = RunFlops(**runtime.on_main(lambda: asdict(run_flops(run))))
        stages = {name: stage_figures(run, name, self.settings.warmup, flops) for name in _measured_stages(run.config)}
        return Result(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machines=machines_of(runtime),
            threads=runtime.gather(torch.get_num_threads()),
            versions=versions(),
            warmup_steps=self.settings.warmup,
            log=Log(
                users=dataset.num_users,
                items=dataset.num_items,
                window=dataset.window,
                windows=train.num_rows,
                examples=train.num_examples,
                label_bytes=label_bytes,
            ),
            settings={key: value for key, value in flatten(run.config.dump()).items() if key not in PLACES},
            limits=self._limits(run, label_bytes),
            stages=stages | self._with_label_rates(run, stages, label_bytes),
        )

    def _limits(self, run: MeasuredRun, label_bytes: int) -> Limits:
        runtime, training = self.runtime, run.config.training
        peaks = runtime.gather(limits.product_teraflops(runtime, training))
        disk = limits.disk_seconds(runtime, self.folder, label_bytes or limits.BLOCK * runtime.world_size)
        return Limits(
            product=limits.described_product(runtime.device, training),
            peak_teraflops=peaks,
            disk_bytes=disk.bytes,
            disk_write_gb_per_second=disk.bytes / disk.write_seconds / 1e9,
            disk_read_gb_per_second=disk.bytes / disk.read_seconds / 1e9,
            all_reduce=_all_reduce(run),
        )

    def _with_label_rates(
        self, run: MeasuredRun, stages: dict[str, StageFigures], label_bytes: int
    ) -> dict[str, StageFigures]:
        """Stages label and distill with the rates at which labels are written, and read; none without labels."""
        if not label_bytes:
            return {}
        reads = self.runtime.gather(limits.label_reads(run, self.settings.warmup + self.settings.steps))
        read = sum(num_bytes for num_bytes, _ in reads) / max(seconds for _, seconds in reads)
        rates = {"label": label_bytes / stages["label"].seconds, "distill": read}
        return {
            name: stages[name].model_copy(update={"labels_gb_per_second": rate / 1e9}) for name, rate in rates.items()
        }

    def _beside_one_rank(self, measured: Config, result: Result) -> Result:
        """The result with the rates of rank 0 alone; the other ranks wait."""

        def alone() -> dict[str, Any]:
            try:
                return {"rates": self._one_rank_rates(measured, result)}
            except UserError as error:  # whole item tables may be too large for one rank
                return {"problem": str(error)}

        outcome = self.runtime.on_main(alone)
        rates = outcome.get("rates", {})
        stages = {
            name: stage.model_copy(update={"one_rank_examples_per_second": rates.get(name)})
            for name, stage in result.stages.items()
        }
        return result.model_copy(update={"stages": stages, "one_rank_problem": outcome.get("problem")})

    def _one_rank_rates(self, measured: Config, result: Result) -> dict[str, float]:
        """Examples a second of each stage, done by this rank as the only one, with its share of the batch."""
        config = self.settings.of_one_rank(measured, self.runtime.world_size, self.folder)
        if self.settings.config is None:
            num_users = ceil(result.log.windows / self.runtime.world_size)
            write_log(self.folder / "one-rank.parquet", num_users, result.log.items, result.log.window)
        only = Runtime(self.runtime.device, 0, 1, timedelta(minutes=config.distributed.timeout_minutes))
        run = MeasuredRun(config, only)
        work_on(run, keep_threads=self.keep_threads)
        flops = run_flops(run)
        return {name: stage_figures(run, name, self.settings.warmup, flops).rate for name in result.stages}


def _measured_stages(config: Config) -> list[str]:
    """The stages that have figures: pretrained members are only copied."""
    skipped = {"prepare", "teach"} if config.teachers.pretrained else {"prepare"}
    return [name for name in stage_names(config) if name not in skipped]


def _label_bytes(run: MeasuredRun) -> int:
    """Bytes of the soft-label cache; 0 for a method without."""
    if not run.config.num_members:
        return 0
    return sum(entry.bytes for entry in read_index(run.folder / "labels").files)


def _all_reduce(run: MeasuredRun) -> AllReduce | None:
    """The sum over all ranks of as many bytes as a rank has gradients of the student."""
    runtime = run.runtime
    if runtime.world_size == 1:
        return None
    size = ModelSize.of(run.config.model, run.dataset)
    num_bytes = size.parameters - size.item_table + size.item_table // run.config.distributed.catalog_parallel
    seconds = runtime.gather(limits.all_reduce_seconds(runtime, num_bytes))
    return AllReduce(bytes=num_bytes, milliseconds=1e3 * max(seconds))
