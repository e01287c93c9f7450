"""One step's forward: model and loss as one module, for a wrapper of gradients to take."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from csrec_dist.data.batches import Batch
from csrec_dist.distributed import Group
from csrec_dist.losses import Loss, SoftLabels, cross_entropy_parts
from csrec_dist.losses.contrastive import ContrastOptions, info_nce
from csrec_dist.models import ItemTable, SequentialModel, TrainingInputs, TrainingStates
from csrec_dist.training.options import Precision

ALONE = Group((0,), 0)

LossFunction = Callable[[Tensor, ItemTable, Tensor, SoftLabels | None], Loss]


class TrainStep(nn.Module):
    """Model and loss as one module, so that a wrapper gathers the item table for both uses in one forward.

    The loss may be a module with parameters of its own; they are trained and kept with the model's. `group` are
    the ranks that train the model: a contrastive loss looks at the windows of all of them. `one_hot_weight` is the
    weight that the loss gives to the one-hot targets (1 − β of Eq. 20): the contrastive loss, which is the model's
    own too, gets it as well. With `precision` bf16 the model computes under autocast; what comes after its states is
    fp32, and so are all weights.
    """

    def __init__(
        self,
        model: SequentialModel,
        loss_function: LossFunction,
        group: Group = ALONE,
        precision: Precision = "fp32",
        one_hot_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.precision = precision
        self.one_hot_weight = one_hot_weight
        self.model = model
        self.loss_function = loss_function
        self.group = group

    def forward(self, inputs: TrainingInputs, labels: SoftLabels | None) -> Loss:
        """The summed loss of what the model trains with, and the number of its states."""
        given = self._states(inputs)
        if given.places is None:
            loss = self.loss_function(given.states, self.model.item_table, given.targets, labels)
        else:
            loss = self._by_places(given, labels)
        if given.views is None:
            return loss
        return loss._replace(sum=loss.sum + self._contrast(given.views, loss.count))

    def _states(self, inputs: TrainingInputs) -> TrainingStates:
        """The model's states, in fp32."""
        if self.precision == "fp32":
            return self.model.training_states(inputs)
        with torch.autocast(inputs.histories.device.type, torch.bfloat16):
            given = self.model.training_states(inputs)
        views = None if given.views is None else (given.views[0].float(), given.views[1].float())
        return given._replace(states=given.states.float(), views=views)

    def _contrast(self, views: tuple[Tensor, Tensor], num_states: Tensor) -> Tensor:
        """What, divided by the global number of states, is (1 − β) λ times the mean of InfoNCE over the global windows.

        So the model's own loss, of weight 1 − β, is mean over examples + λ · mean over windows. Every rank enters, also
        one without windows.
        """
        options = cast(ContrastOptions, self.model.config)
        gathered, own = self.group.gather_rows(torch.cat(views, dim=1))
        first, second = gathered.chunk(2, dim=1)
        total, num_windows = info_nce(first, second, own, temperature=options.contrast_temperature)
        counts = self.group.all_reduce_sum(torch.stack([num_states, num_windows]))
        weight = self.one_hot_weight * options.contrast_weight
        return total * (weight * counts[0] / counts[1].clamp(min=1))

    def _by_places(self, given: TrainingStates, labels: SoftLabels | None) -> Loss:
        """The loss where states have labels, and cross-entropy where they have none."""
        assert given.places is not None
        if labels is None:
            return self.loss_function(given.states, self.model.item_table, given.targets, None)
        labelled = given.places >= 0
        found = self.loss_function(
            given.states[labelled], self.model.item_table, given.targets[labelled], labels[given.places[labelled]]
        )
        bare = cross_entropy_parts(given.states[~labelled], self.model.item_table, given.targets[~labelled])
        cross_entropy = found.cross_entropy + bare.cross_entropy
        return Loss(found.sum + bare.sum, found.count + bare.count, cross_entropy, found.divergence)


def training_inputs(batch: Batch, seed: int) -> TrainingInputs:
    """What a model sees of a batch in the step of that seed."""
    return TrainingInputs(batch.histories, batch.targets, batch.examples, seed)


def step_seed(seed: int, step: int, place: int) -> int:
    """A seed that depends on the position only, so that a resumed run draws the same; for dropout `place` is a rank."""
    return ((seed * 1_000_003 + step) * 65_537 + place) % 2**63


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed what dropout draws from on a device and on the host.

    `torch.manual_seed` does so for all devices, and where CUDA has not started it keeps a stack trace of every call
    instead, which took a millisecond or two of each step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
