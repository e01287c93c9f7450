"""The forward pass of a step: model and loss as one module, which engines wrap."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from csrec_dist.distributed.groups import ALONE, Group
from csrec_dist.losses import Loss, SoftLabels, cross_entropy_parts, distillation_parts
from csrec_dist.losses.contrastive import ContrastOptions, info_nce
from csrec_dist.models import ItemTable, SequentialModel, TrainingInputs, TrainingStates
from csrec_dist.options import MatmulPrecision
from csrec_dist.training.options import Precision, TrainingOptions

LossFunction = Callable[[Tensor, ItemTable, Tensor, SoftLabels | None, Tensor, MatmulPrecision], Loss]
"""Of states [n, d], the item table, targets [n], the labels of the states if they have some, weights [n], and the
precision of the products with the tables."""


def one_hot(
    states: Tensor,
    table: ItemTable,
    targets: Tensor,
    labels: SoftLabels | None,
    weights: Tensor | None = None,
    precision: MatmulPrecision = "highest",
) -> Loss:
    """Cross-entropy with the next item: the loss of Base and of the members (ℓ_ce)."""
    return cross_entropy_parts(states, table, targets, weights=weights, precision=precision)


def student_loss(options: TrainingOptions) -> LossFunction:
    """The student's loss of Eq. 20."""

    def loss_function(
        states: Tensor,
        table: ItemTable,
        targets: Tensor,
        labels: SoftLabels | None,
        weights: Tensor,
        precision: MatmulPrecision,
    ) -> Loss:
        assert labels is not None
        return distillation_parts(
            states,
            table,
            targets,
            labels,
            temperature=options.temperature,
            beta=options.beta,
            kl=options.kl,
            weights=weights,
            precision=precision,
        )

    return loss_function


class MicroBatch(NamedTuple):
    """The data of a part of a step: the model's inputs, and the stored fields of its examples' labels."""

    inputs: TrainingInputs
    fields: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """What goes to the device, by name."""
        return self.inputs.tensors() | {f"label.{name}": field for name, field in self.fields.items()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same with these tensors, named as in `tensors()`."""
        fields = {name: tensors[f"label.{name}"] for name in self.fields}
        return self._replace(inputs=self.inputs.with_tensors(tensors), fields=fields)

    def pinned(self) -> Self:
        """The same in pinned memory, from which a GPU copies while the host goes on."""
        return self.with_tensors({name: tensor.pin_memory() for name, tensor in self.tensors().items()})


class TrainStep(nn.Module):
    """Model and loss as one module, so that a wrapper gathers the item table for both uses in one forward pass.

    The loss may be a module with parameters of its own, which are trained and checkpointed with the model's. `group`
    are the ranks that train the model: a contrastive loss contrasts the windows of all of them. `one_hot_weight` is the
    weight of the one-hot targets in the loss (1 − β of Eq. 20), and also that of the contrastive loss, which is a part
    of the model's own loss. With `precision` bf16 the model computes under autocast; everything after its states is
    fp32, and so are all weights. `matmul_precision` is that of the loss's products with the tables.
    """

    def __init__(
        self,
        model: SequentialModel,
        loss_function: LossFunction,
        group: Group = ALONE,
        precision: Precision = "fp32",
        one_hot_weight: float = 1.0,
        matmul_precision: MatmulPrecision = "highest",
    ) -> None:
        super().__init__()
        self.matmul_precision = matmul_precision
        self.precision = precision
        self.one_hot_weight = one_hot_weight
        self.model = model
        self.loss_function = loss_function
        self.group = group

    def forward(self, inputs: TrainingInputs, labels: SoftLabels | None) -> Loss:
        """The summed loss of what the model trains with, and the number of its states."""
        outputs = self._states(inputs)
        if labels is None or not outputs.more_than_examples:
            table, precision = self.model.item_table, self.matmul_precision
            loss = self.loss_function(outputs.states, table, inputs.targets, labels, inputs.weights, precision)
        else:
            loss = self._partly_labelled(outputs.states, inputs, labels)
        if outputs.views is None:
            return loss
        num_states = (inputs.positions.inverse >= 0).sum().to(loss.count.dtype)  # the examples' weights are not its own
        return loss._replace(sum=loss.sum + self._contrast(outputs.views, outputs.view_weights, num_states))

    def _states(self, inputs: TrainingInputs) -> TrainingStates:
        """The model's states, in fp32."""
        if self.precision == "fp32":
            return self.model.training_states(inputs)
        with torch.autocast(inputs.histories.device.type, torch.bfloat16):
            outputs = self.model.training_states(inputs)
        views = None if outputs.views is None else (outputs.views[0].float(), outputs.views[1].float())
        return outputs._replace(states=outputs.states.float(), views=views)

    def _contrast(self, views: tuple[Tensor, Tensor], view_weights: Tensor | None, num_states: Tensor) -> Tensor:
        """The contrastive term, scaled for the later division by the global number of states.

        After it the term is (1 − β) λ times the mean of InfoNCE over the global windows: the model's own loss, of
        weight 1 − β, is the mean over examples plus λ times the mean over windows. Every rank enters, even without
        windows.
        """
        options = cast(ContrastOptions, self.model.config)
        columns = views if view_weights is None else (*views, view_weights.unsqueeze(1))
        gathered, rows = self.group.gather_rows(torch.cat(columns, dim=1))
        first, second, *rest = gathered.split([part.shape[1] for part in columns], dim=1)
        weights = rest[0].squeeze(1).detach() if rest else None
        temperature = options.contrast_temperature
        total, num_windows = info_nce(first, second, rows, temperature=temperature, weights=weights)
        counts = self.group.all_reduce_sum(torch.stack([num_states, num_windows]))
        weight = self.one_hot_weight * options.contrast_weight
        return total * (weight * counts[0] / counts[1].clamp(min=1))

    def _partly_labelled(self, states: Tensor, inputs: TrainingInputs, labels: SoftLabels) -> Loss:
        """The loss of the examples' states, which come first and have labels, plus cross-entropy of the others."""
        table, targets, weights, num = self.model.item_table, inputs.targets, inputs.weights, len(inputs.examples)
        # Copies of the weights: a CPU's order of summation depends on their alignment in memory.
        first, second = weights[:num].clone(), weights[num:].clone()
        soft = self.loss_function(states[:num], table, targets[:num], labels, first, self.matmul_precision)
        bare = one_hot(states[num:], table, targets[num:], None, second, self.matmul_precision)
        cross_entropy = soft.cross_entropy + bare.cross_entropy
        return Loss(soft.sum + bare.sum, soft.count + bare.count, cross_entropy, soft.divergence)


def step_seed(seed: int, step: int, stream: int) -> int:
    """A seed of the position alone, so that a resumed run draws the same; for dropout `stream` is the rank."""
    return ((seed * 1_000_003 + step) * 65_537 + stream) % 2**63


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generators of dropout on a device and on the host.

    `torch.manual_seed` seeds all devices; where CUDA is not initialised it saves a stack trace of every call instead,
    which took a millisecond or two of each step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
