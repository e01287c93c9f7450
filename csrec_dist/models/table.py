"""The item table of a model: a rank's slice of it, or with one rank the whole table."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from csrec_dist.distributed.catalog import CatalogSlice

_TABLE_DEVICE: ContextVar[torch.device | None] = ContextVar("table_device", default=None)
RANDOM_FILLS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)


@contextmanager
def tables_on(device: torch.device) -> Iterator[None]:
    """Put the item tables that are made in this block on `device`."""
    token = _TABLE_DEVICE.set(device)
    try:
        yield
    finally:
        _TABLE_DEVICE.reset(token)


class ItemTable(nn.Module):
    """One vector per item, read for inputs and multiplied with states for logits.

    `weight` [V, d] holds item i in row i−1: padding has no row, so it is neither trained nor
    ranked. `bias` is [V] (zero at the start) or None. The caller initialises `weight`.

    Both hold the rows of `catalog`, this rank's slice: at first the whole. The ranks of its group read the table
    together: each calls `forward` equally often, for items of its own.
    """

    SLICED: ClassVar[tuple[str, ...]] = ("weight", "bias")
    bias: nn.Parameter | None

    def __init__(self, num_items: int, width: int, *, bias: bool = False) -> None:
        super().__init__()
        device = _TABLE_DEVICE.get()
        self.weight = nn.Parameter(torch.empty(num_items, width, device=device))
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_items, device=device)) if bias else None)
        self.catalog = CatalogSlice.whole(num_items)

    def forward(self, items: Tensor) -> Tensor:
        """Vectors [.., d] of items [..] in 0…V; zeros, and no gradient, where an item is 0."""
        return self.catalog.look_up(self.weight, items)

    def logits(self, states: Tensor) -> Tensor:
        """Logits [.., V] of states [.., d]; column i is item i+1's. Of a slice, those of its items."""
        return F.linear(states, self.weight, self.bias)

    def take(self, catalog: CatalogSlice) -> None:
        """Keep only this slice of the rows from now on, without values yet."""
        device, self.catalog = self.weight.device, catalog
        self.weight = nn.Parameter(torch.empty(catalog.num_rows, self.weight.shape[1], device=device))
        if self.bias is not None:
            self.bias = nn.Parameter(torch.empty(catalog.num_rows, device=device))

    def mean_square(self) -> Tensor:
        """The mean over all V items of a vector's squared norm, without gradient."""
        return self.catalog.mean(self.weight.detach().square().sum(1))

    def most_calls(self, num_calls: int) -> int:
        """How often every rank that shares the table has to call `forward`, if this rank needs `num_calls`."""
        return self.catalog.most_calls(num_calls, self.weight.device)


class HasItemTable(Protocol):
    """A model, as far as its table is concerned."""

    item_table: ItemTable


ModelT = TypeVar("ModelT", bound=HasItemTable)


def sliced(make: Callable[[], ModelT], catalog: CatalogSlice) -> ModelT:
    """The model that `make` builds, with this rank's slice of the item table alone, equal to those rows of the whole.

    A whole table is built as usual. For a slice, the table has its shape but no memory while `make` runs; the random
    numbers that fill it are drawn part by part, and those of the slice are kept. All other weights come out the same.
    `make` has to fill the table with normal or uniform numbers.
    """
    if catalog.is_whole:
        return make()
    slices = _TableSlices(catalog)
    with tables_on(torch.device("meta")), slices:
        model = make()
    table, weight = model.item_table, slices.of(model.item_table.weight)
    table.take(catalog)
    table.weight = nn.Parameter(weight)
    if table.bias is not None:
        table.bias = nn.Parameter(torch.zeros(catalog.num_rows))
    return model


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Tensors that are made in this block have shapes but no memory, and are not filled with random numbers.

    Without memory these change nothing, and torch would import its compiler for them, which takes seconds.
    """
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Leaves out the functions of torch.nn.init, and the methods of tensors, that fill them with random numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class _TableSlices(TorchDispatchMode):
    """Intercepts the random filling of tables [V, d] without memory, and keeps the slice of the numbers drawn."""

    def __init__(self, catalog: CatalogSlice) -> None:
        super().__init__()
        self._catalog = catalog
        self._slices: dict[int, Tensor] = {}

    def of(self, whole: Tensor) -> Tensor:
        """The slice of a table that was filled."""
        assert id(whole) in self._slices, "an item table was left without initial values"
        return self._slices[id(whole)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        target = args[0] if args else None
        if func in RANDOM_FILLS and isinstance(target, Tensor) and target.is_meta:
            (self._slices[id(target)],) = self._catalog.drawn(
                1, target.shape[1], lambda part: func(part, *args[1:], **(kwargs or {}))
            )
            return target
        return func(*args, **(kwargs or {}))
