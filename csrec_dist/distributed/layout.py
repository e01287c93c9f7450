"""The ranks that train one model together, and this rank's place in the mesh data × catalog over them."""

from dataclasses import dataclass

from csrec_dist.distributed.catalog import CatalogShard
from csrec_dist.distributed.groups import Group


@dataclass(frozen=True)
class Layout:
    """`group` are all ranks that train the model; each example is one rank's.

    `catalog` are those that hold one item table together with this rank, and `data` those that hold the same slice of
    it. With catalog_parallel 1 every rank holds a whole table: `catalog` is this rank alone, `data` the group.
    """

    group: Group
    catalog: Group
    data: Group

    def shard(self, num_items: int) -> CatalogShard | None:
        """This rank's slice of the items, or None where it holds them all."""
        return CatalogShard.of(num_items, self.catalog) if self.catalog.size > 1 else None
