"""ZeRO 1, 2 and 3 by DeepSpeed on the ranks of one model, and the settings that it is given."""

import math
import os
import warnings
from collections.abc import Collection
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csrec_dist.distributed.catalog import CatalogSlice, catalog_rows
from csrec_dist.distributed.engines.base import MOMENTS, Engine, Held, StateReader, set_learning_rate
from csrec_dist.distributed.engines.fsdp import readable_copy, without_memory
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
    "communication_data_type": "gradients are averaged in fp32",
    "data_types": "gradients are summed in fp32",
}
"""Keys of DeepSpeed that a file may not set, or only to "auto", and why."""


def check_deepspeed(path: Path | str) -> None:
    """UserError where DeepSpeed is missing or its settings are wrong."""
    if find_spec("deepspeed") is None:
        raise UserError(
            "distributed.engine is deepspeed, which is not installed. Install it with "
            "`pip install deepspeed`, or set distributed.engine=fsdp."
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
        group = layout.group
        # From a busy disk the import takes minutes, which the others wait for.
        with group.watch.doing("importing DeepSpeed"):
            library(device)
        group.watch.meet("starting DeepSpeed", group.ranks)
        with group.watch.collective("starting DeepSpeed", group.ranks):
            self._engine = start(module, group, device, complete(settings, clip_norm, accumulate))
        actual = self._engine.zero_optimization_stage(), self._engine.dp_world_size
        assert actual == (self._stage, layout.group.size), f"DeepSpeed runs {actual} (stage, ranks)"

    def forward(self, *inputs: Any, is_last: bool = True) -> Any:
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
        """See `Engine.readable`: below stage 3 the module itself; of stage 3, its tables in slices over the group."""
        if self._stage < 3:
            return self.module
        shares, buffers = self.held_weights(), dict(self.module.named_buffers())

        def value_of(name: str, catalog: CatalogSlice | None) -> Tensor:
            if name in buffers:
                return buffers[name].clone() if catalog is None else buffers[name][catalog.rows]
            return self._gathered(shares[name], catalog)

        return readable_copy(self._skeleton, self.layout, value_of)

    def _gathered(self, share: Held, catalog: CatalogSlice | None) -> Tensor:
        """Some rows of a parameter, or all, from the ranks' shares of its numbers."""
        group, width = self.layout.group, math.prod(share.shape[1:])
        num_rows = share.shape[0] if share.shape else 1
        shares = [range(run.start, run.stop) for run in catalog_rows(num_rows * width, group.size)]
        wanted = catalog_rows(num_rows, group.size) if catalog else [range(num_rows)] * group.size
        runs = [range(rows.start * width, rows.stop * width) for rows in wanted]
        numbers = group.exchange_runs(share.numbers, shares, runs)
        return numbers.view(len(wanted[group.rank]), *share.shape[1:]) if catalog else numbers.view(share.shape)

    def held_weights(self) -> dict[str, Held]:
        """See `Engine.held_weights`."""
        from deepspeed.utils import safe_get_local_fp32_param

        held = {name: Held.whole(buffer, self.layout.group) for name, buffer in self.module.named_buffers()}
        for name, parameter in self._parameters.items():
            is_cut = self._stage == 3
            share = self._share(parameter, safe_get_local_fp32_param(parameter)) if is_cut else None
            held[name] = share or Held.whole(parameter, self.layout.group)
        return held

    def weights_changed(self) -> None:
        """See `Engine.weights_changed`: DeepSpeed has fp32 shares, by which it updates what the forward pass reads."""
        for parameter in self._parameters.values():
            place: Any = None if self._stage == 3 else parameter._hp_mapping  # type: ignore[attr-defined]
            if self._stage == 3:
                self._renew(parameter)
            elif place is not None:
                place.update_hp()

    @torch.no_grad()
    def _renew(self, parameter: Any) -> None:
        """Copy a share to where it is gathered from; what is small is kept whole between steps, too."""
        from deepspeed.utils import safe_get_local_fp32_param

        share = safe_get_local_fp32_param(parameter)
        parameter.ds_tensor.data.copy_(share)
        if parameter.ds_persist and parameter.numel():
            parameter.data.copy_(self._gathered(self._share(parameter, share), None))

    def _share(self, parameter: Any, numbers: Tensor) -> Held:
        """This rank's share at stage 3 of a parameter, or of a state of it, without what fills it up."""
        num, shape = parameter.ds_numel, tuple(parameter.ds_shape)
        first = min(self.layout.group.rank * len(numbers), num)
        return Held(numbers.detach()[: max(0, min(len(numbers), num - first))], first, shape)

    def held_moments(self) -> dict[str, Held]:
        """See `Engine.held_moments`."""
        from deepspeed.utils import safe_get_local_optimizer_state

        held: dict[str, Held] = {}
        states = self._states()
        for name, parameter in self._parameters.items() if states else ():
            held[f"{name}.step"] = Held.whole(states[0]["step"], self.layout.group)
            for key in MOMENTS:
                if self._stage == 3:
                    held[f"{name}.{key}"] = self._share(parameter, safe_get_local_optimizer_state(parameter, key))
                elif (place := parameter._hp_mapping) is not None:  # type: ignore[attr-defined]
                    numbers, first = place.get_optim_state_fragment(key), place.lp_fragment_address.start
                    held[f"{name}.{key}"] = Held(numbers, first, tuple(parameter.shape))
        return held

    def make_moments(self, parameters: Collection[str]) -> None:
        """See `Engine.make_moments`: those of all flat shares."""
        zero = self._engine.optimizer
        flat = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        for share in flat:
            state = zero.optimizer.state[share]
            state["step"] = torch.zeros(())
            for key in MOMENTS:
                state.setdefault(key, torch.zeros_like(share))
        if self._stage < 3:
            zero._lazy_init_hp_params_optimizer_state()

    def restore(self, saved: StateReader) -> None:
        """See `Engine.restore`."""
        super().restore(saved)
        for state in self._states():
            state["step"].copy_(self._states()[0]["step"])

    def _states(self) -> list[dict[str, Tensor]]:
        """Adam's states of the flat shares that this rank updates; none before the first step."""
        return [state for state in self._engine.optimizer.optimizer.state.values() if state]

    def close(self) -> None:
        """See `Engine.close`; of stage 3, DeepSpeed keeps the shares of the parameters."""
        self._engine.destroy()

    def record(self) -> dict[str, Any]:
        """See `Engine.record`."""
        return super().record() | {"zero_stage": self._engine.zero_optimization_stage()}


def start(module: nn.Module, group: Group, device: torch.device, settings: dict[str, Any]) -> Any:
    """DeepSpeed's engine on the ranks of a group.

    On CPUs it would compile an operator for inference first, and wait forever for a compilation that was killed. It
    calls functions by names that torch warns of at every step; the filter lasts until the run restores those of before.
    """
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    deepspeed = library(device)
    with variables(_accelerator(device)):
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        optimizer = torch.optim.Adam(module.parameters())
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=settings, mpu=DataRanks(group), dist_init_required=False
        )
    assert isinstance(engine, deepspeed.DeepSpeedEngine)
    return engine


def library(device: torch.device) -> Any:
    """The package deepspeed, which decides when it is imported for what kind of device."""
    with variables(_accelerator(device)):
        return import_module("deepspeed")


def _accelerator(device: torch.device) -> dict[str, str | None]:
    return {"DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu" if device.type == "cpu" else None)}


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
