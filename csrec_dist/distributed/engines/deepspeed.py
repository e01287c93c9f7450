"""ZeRO 1, 2 and 3 by DeepSpeed on the ranks of one model, and the settings that it is given."""

import os
import warnings
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csrec_dist.distributed.engines.base import Engine, Snapshot, StateReader, Tensors, set_learning_rate
from csrec_dist.distributed.engines.fsdp import without_memory
from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.layout import Layout
from csrec_dist.errors import UserError
from csrec_dist.files import parse_json, read_text
from csrec_dist.process_state import variables

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
    """UserError where DeepSpeed is missing or its settings are wrong."""
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
    text = read_text(path, "distributed.deepspeed: the file")
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UserError(f"distributed.deepspeed: {path} is not valid JSON: {error}.") from None
    settings = _without_auto(content) if isinstance(content, dict) else {}
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


def complete(settings: dict[str, Any], clip_norm: float | None, accumulate: int) -> dict[str, Any]:
    """All settings of an engine. The size of a micro-batch is not used: shares of a batch differ in size."""
    return settings | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": clip_norm or 0.0,
        "zero_force_ds_cpu_optimizer": False,
    }


def _without_auto(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without "auto", and without sections in which nothing else stands."""
    shortened = {key: _without_auto(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: value for key, value in shortened.items() if value != "auto" and (value != {} or not settings[key])}


MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeRO(Engine):
    """A DeepSpeed engine over the layout's group, which has more than one rank, with torch's Adam.

    Scoring inside the module's forward pass is what makes stage 3 gather the item table for it.
    """

    name = "deepspeed"

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        device: torch.device,
        clip_norm: float | None,
        accumulate: int,
        settings: dict[str, Any],
    ) -> None:
        """`settings` as `read_settings` gives them."""
        super().__init__(module, layout, device, clip_norm)
        self._stage: int = settings["zero_optimization"]["stage"]
        self._skeleton = without_memory(module)
        self._parameters = dict(module.named_parameters())
        with layout.group.watch.collective("starting DeepSpeed", layout.group.ranks):
            self._engine = start(module, layout.group, device, complete(settings, clip_norm, accumulate))
        actual = self._engine.zero_optimization_stage(), self._engine.dp_world_size
        assert actual == (self._stage, layout.group.size), f"DeepSpeed runs {actual} (stage, ranks)"

    def forward(self, *inputs: Any) -> Any:
        """See `Engine.forward`."""
        return self._engine(*inputs)

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """See `Engine.backward`; micro-batches are summed, not averaged as DeepSpeed would."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> None:
        """See `Engine.step`."""
        set_learning_rate(self._engine.optimizer, learning_rate)
        self._engine.step()

    def readable(self) -> nn.Module:
        """See `Engine.readable`: a plain copy."""
        plain = deepcopy(self._skeleton)
        plain.load_state_dict(self._whole(self.device), assign=True)
        return plain

    def snapshot(self) -> Snapshot:
        """See `Engine.snapshot`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        snapshot, moments = Snapshot(), {}
        snapshot.add("model", self._whole(torch.device("cpu")), ())
        states = self._states()
        for name, parameter in self._parameters.items() if states else ():
            for key in MOMENTS:
                moments[f"{name}.{key}"] = safe_get_full_optimizer_state(parameter, key).cpu()
            moments[f"{name}.step"] = states[0]["step"].detach().clone().cpu()
        snapshot.add("optimizer", moments, ())
        return snapshot

    def restore(self, saved: StateReader) -> None:
        """See `Engine.restore`: every rank reads all, and keeps its shares."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        buffers = dict(self.module.named_buffers())
        for name in saved.names("model"):
            value = saved.read("model", name).to(self.device)
            if name in buffers:
                buffers[name].copy_(value)
            else:
                self._set_weight(self._parameters[name], value)
                safe_set_full_fp32_param(self._parameters[name], value)
        names = set(saved.names("optimizer"))
        if not names:
            return
        steps = {float(saved.read("optimizer", name)) for name in names if name.endswith(".step")}
        assert len(steps) == 1, f"parameters that were trained for {sorted(steps)} steps"
        self._make_states(steps.pop())
        for name, parameter in self._parameters.items():
            for key in MOMENTS:
                value = saved.read("optimizer", f"{name}.{key}").to(self.device)
                safe_set_full_optimizer_state(parameter, value, key)

    def close(self) -> None:
        """See `Engine.close`; of stage 3, DeepSpeed keeps the shares of the parameters."""
        self._engine.destroy()

    def record(self) -> dict[str, Any]:
        """See `Engine.record`."""
        return super().record() | {"zero_stage": self._engine.zero_optimization_stage()}

    @torch.no_grad()
    def _whole(self, device: torch.device) -> Tensors:
        """Copies of the parameters, gathered one after the other, and of the buffers; every rank calls this."""
        from deepspeed.utils import safe_get_full_fp32_param

        buffers = {name: buffer.to(device, copy=True) for name, buffer in self.module.named_buffers()}
        return buffers | {
            name: safe_get_full_fp32_param(parameter).to(device, copy=True)
            for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set what the forward pass reads."""
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0, enabled=self._stage == 3):
            parameter.copy_(value)

    def _states(self) -> list[dict[str, Tensor]]:
        """Adam's states of the flat shares that this rank updates; none before the first step."""
        return [state for state in self._engine.optimizer.optimizer.state.values() if state]

    def _make_states(self, steps: float) -> None:
        """Adam's states of all flat shares, to be filled."""
        zero = self._engine.optimizer
        flat = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        for share in flat:
            state = zero.optimizer.state[share]
            state["step"] = torch.tensor(steps)
            for key in MOMENTS:
                state.setdefault(key, torch.zeros_like(share))
        if self._stage < 3:
            zero._lazy_init_hp_params_optimizer_state()


def start(module: nn.Module, group: Group, device: torch.device, settings: dict[str, Any]) -> Any:
    """DeepSpeed's engine on the ranks of a group.

    On CPUs it would compile an operator for inference first, and wait forever for a compilation that was killed. It
    calls functions by names that torch warns of at every step; the filter lasts until the run restores those of before.
    """
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    accelerator = os.environ.get("DS_ACCELERATOR", "cpu" if device.type == "cpu" else None)
    with variables({"DS_ACCELERATOR": accelerator}):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        optimizer = torch.optim.Adam(module.parameters())
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=settings, mpu=DataRanks(group), dist_init_required=False
        )
    assert isinstance(engine, deepspeed.DeepSpeedEngine)
    return engine


class DataRanks:
    """What DeepSpeed asks of a layout of ranks: those of a group share the data, and no model is cut."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def get_data_parallel_group(self) -> Any:
        """The ranks that share one model."""
        return self._group.handle

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Their numbers in the run."""
        return list(self._group.ranks)

    def get_data_parallel_world_size(self) -> int:
        """Their number."""
        return self._group.size

    def get_data_parallel_rank(self) -> int:
        """This rank among them."""
        return self._group.rank

    def get_model_parallel_group(self) -> None:
        """None: a rank is alone in it."""

    def get_model_parallel_world_size(self) -> int:
        """1."""
        return 1

    def get_model_parallel_rank(self) -> int:
        """0."""
        return 0
