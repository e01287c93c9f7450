"""The examples of an objective: a rank's own, or those of all ranks that share a catalog."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from csrec_dist.objectives.soft_labels import SoftLabels
from csrec_dist.objectives.tiled import CatalogPart

if TYPE_CHECKING:
    from csrec_dist.distributed.catalog import CatalogShard


class Examples(NamedTuple):
    """N examples: states [N, d], item rows of the targets [N], weights [N], labels, and M's rows at the targets [N, r].

    `part` says what makes the examples those of a catalog group, and which are this rank's own.
    """

    states: Tensor
    places: Tensor
    weights: Tensor
    labels: SoftLabels | None
    observed: Tensor | None
    part: CatalogPart | None = None

    def of_group(self, catalog: "CatalogShard") -> "Examples":
        """These examples among those of all ranks of the group, their labels on this rank's slice.

        States and M's rows are gathered in the type of the weights, in which their gradients are summed over the
        slices on the way back.
        """
        shared, dtype = catalog.share(len(self.states), self.states.device), self.weights.dtype
        weights = shared.gather(self.weights)
        own = torch.zeros_like(weights)
        own[shared.own] = self.weights
        places, held = catalog.places(shared.gather(self.places + 1))
        return Examples(
            shared.gather(self.states.to(dtype)),
            places,
            weights,
            None if self.labels is None else self.labels.shared(shared),
            None if self.observed is None else shared.gather(self.observed.to(dtype)),
            CatalogPart(catalog, held, own),
        )
