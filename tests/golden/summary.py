"""What a run has computed, as plain JSON, and where two such summaries differ."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

LOSSES = {"loss", "cross_entropy", "divergence"}
NO_RESULT = re.compile(r"second|wait|time|mib|memory|trained_by|^model\.")
"""Numbers of a metrics.json that are measured, or settings; a setting may change its name."""

Summary = dict[str, dict[str, Any]]
"""Part → name → number, list of numbers, or "type [shape] SHA-256 of the bytes" of a tensor."""


def summarize(run: Path) -> Summary:
    """All losses, tensors and metrics in the folder of a finished run.

    Losses are those of every step, from TensorBoard (float32), and the epochs' in each model's metrics.json (float64).
    """
    tensors = dict(_tensors(run))
    labels = {name for name in tensors if "label" in name}
    numbers = dict(_numbers(run))
    is_loss = {name: name.rpartition(".")[2] in LOSSES for name in numbers}
    return {
        "losses": dict(_curves(run)) | {name: value for name, value in numbers.items() if is_loss[name]},
        "weights": {name: content for name, content in tensors.items() if name not in labels},
        "labels": {name: content for name, content in tensors.items() if name in labels},
        "metrics": {name: value for name, value in numbers.items() if not is_loss[name]},
    }


def _tensors(run: Path) -> Iterator[tuple[str, str]]:
    """Tensor by tensor, since the headers of the files hold names of options."""
    for path in sorted(run.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                digest = hashlib.sha256(content).hexdigest()
                kind = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
                yield f"{path.relative_to(run).with_suffix('')}:{name}", f"{kind} {digest}"


def _numbers(run: Path) -> Iterator[tuple[str, float]]:
    """The numbers of every metrics.json that are results."""
    for path in sorted(run.rglob("metrics.json")):
        file = path.relative_to(run)
        for name, value in _flat(json.loads(path.read_text()), ""):
            if not NO_RESULT.search(name):
                yield f"{file}:{name}", value


def _flat(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in pairs:
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _curves(run: Path) -> Iterator[tuple[str, list[float]]]:
    """The losses of every step, a list for each curve, in the order in which the curves began."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    curves: dict[str, list[float]] = {}
    begins: dict[str, float] = {}
    for path in sorted(run.rglob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag.rpartition("/")[2] in LOSSES:
                    name = f"{path.parent.relative_to(run)}:{value.tag}"
                    begins.setdefault(name, event.wall_time)
                    curves.setdefault(name, []).append(value.tensor.float_val[0])
    yield from ((name, curves[name]) for name in sorted(begins, key=begins.__getitem__))


@dataclass
class Difference:
    """One thing in which two summaries differ; `step` is the first one where two curves do."""

    name: str
    base: Any
    head: Any
    step: int | None = None

    def __str__(self) -> str:
        at = "" if self.step is None else f" at step {self.step}"
        return f"{self.name}{at}: {_shown(self.base)} → {_shown(self.head)}"


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    return f"{value[:-52]}…" if isinstance(value, str) else repr(value)


def differences(base: Summary, head: Summary) -> list[Difference]:
    """Where two summaries of one case differ, as it came about: first the curves of what is trained first."""
    return [
        Difference(f"{part} {each.name}", each.base, each.head, each.step)
        for part in base
        for each in _part_differences(base[part], head[part])
    ]


def _part_differences(base: dict[str, Any], head: dict[str, Any]) -> Iterator[Difference]:
    """What has one name on both sides is compared; of the rest, what has equal contents has been renamed."""
    new_names = {name: value for name, value in head.items() if name not in base}
    for name, value in base.items():
        if name in head:
            yield from _value_differences(name, value, head[name])
        elif (new_name := _name_of(value, new_names)) is not None:
            del new_names[new_name]
        else:
            yield Difference(name, value, None)
    yield from (Difference(name, None, value) for name, value in new_names.items())


def _name_of(value: Any, named: dict[str, Any]) -> str | None:
    return next((name for name, other in named.items() if same(other, value)), None)


def _value_differences(name: str, base: Any, head: Any) -> Iterator[Difference]:
    if same(base, head):
        return
    if isinstance(base, list) and isinstance(head, list):
        pairs = zip(base, head, strict=False)
        step = next((step for step, pair in enumerate(pairs) if not same(*pair)), min(len(base), len(head)))
        yield Difference(name, *(dict(enumerate(curve)).get(step) for curve in (base, head)), step + 1)
    else:
        yield Difference(name, base, head)


def same(one: Any, other: Any) -> bool:
    """Equal to the last digit; a NaN equals itself."""
    return repr(one) == repr(other)
