"""Names and functions whose modules are imported when first used, so that options and records cost no torch."""

import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import FrameType
from typing import Any


def load(module: str) -> Any:
    """A module, which is imported whole: Ctrl-C meanwhile counts when the import has ended.

    torch, once its import was broken off, cannot be imported any more in that process, such as a notebook's kernel.
    """
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if module in sys.modules or not is_main or not callable(before):
        return import_module(module)
    noted: list[int] = []

    def note(signum: int, _: FrameType | None) -> None:
        noted.append(signum)

    signal.signal(signal.SIGINT, note)
    try:
        return import_module(module)
    finally:
        signal.signal(signal.SIGINT, before)
        if noted:
            signal.raise_signal(signal.SIGINT)


def attributes(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A package's `__getattr__` (PEP 562) for its `names`, by the module that defines them."""
    module_of = {name: module for module, given in names.items() for name in given}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(load(module_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get


def function(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is imported when it is called."""

    def call(*arguments: Any) -> Any:
        return getattr(load(module), name)(*arguments)

    return call
