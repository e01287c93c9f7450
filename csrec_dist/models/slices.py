"""Models whose item table is a slice of the catalog, with the very numbers that whole ones are made of."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from csrec_dist.models.base import SequentialModel, tables_on

if TYPE_CHECKING:
    from csrec_dist.distributed.catalog import CatalogSlice

DRAWS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
ModelT = TypeVar("ModelT", bound=SequentialModel)


def sliced(make: Callable[[], ModelT], catalog: "CatalogSlice") -> ModelT:
    """The model that `make` makes, with this rank's slice of the item table alone: equal to the rows of the whole one.

    While `make` runs, the table has its shape but no memory; what is drawn into it is drawn part by part, and the slice
    kept. All other weights come out as they would, too. `make` initialises the table by normal or uniform draws.
    """
    slices = _TableSlices(catalog)
    with tables_on(torch.device("meta")), slices:
        model = make()
    table, weight = model.item_table, slices.of(model.item_table.weight)
    table.take(catalog)
    table.weight = nn.Parameter(weight)
    if table.bias is not None:
        table.bias = nn.Parameter(torch.zeros(catalog.num_rows))
    return model


class _TableSlices(TorchDispatchMode):
    """Meets what fills tables [V, d] without memory, and keeps the slice of what they would hold."""

    def __init__(self, catalog: "CatalogSlice") -> None:
        super().__init__()
        self._catalog = catalog
        self._kept: dict[int, Tensor] = {}

    def of(self, whole: Tensor) -> Tensor:
        """The slice of a table that was filled."""
        assert id(whole) in self._kept, "an item table was left without initial values"
        return self._kept[id(whole)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        target = args[0] if args else None
        if func in DRAWS and isinstance(target, Tensor) and target.is_meta:
            (self._kept[id(target)],) = self._catalog.drawn(
                1, target.shape[1], lambda part: func(part, *args[1:], **(kwargs or {}))
            )
            return target
        return func(*args, **(kwargs or {}))
