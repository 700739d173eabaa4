"""Training with the task's settings: the one loop of `explicit.train`, with zeros held."""

from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Bool, Int
from torch import Tensor, nn

from simplicit.explicit import training as explicit
from simplicit.lab.baselines.tools.task import Task
from simplicit.lab.baselines.tools.weights import clear, largest, layers, magnitudes

Held = Sequence[tuple[Tensor, Bool[Tensor, "..."]]]
"""Parameters, each with a mask that is false where it is held at zero."""


def train(
    task: Task,
    net: nn.Module,
    epochs: int,
    *,
    slower: float = 1.0,
    part: Int[Tensor, " m"] | None = None,
    objective: Callable[[Tensor, Tensor], Tensor] | None = None,
    penalty: Callable[[], Tensor] | None = None,
    after_step: Callable[[], None] | None = None,
    also: Mapping[str, Tensor] | None = None,
) -> None:
    """Train a copy of the task's network, in place, by cross-entropy on the labels.

    Args:
        task: Data, seed, learning rate and batch size.
        net: The copy; all its parameters are trained.
        epochs: Passes over the samples.
        slower: What the learning rate is divided by.
        part: Indices of the training samples to use; all by default.
        objective: See `explicit.train`.
        penalty: See `explicit.train`.
        after_step: See `explicit.train`.
        also: See `explicit.train`.
    """
    net.requires_grad_(True)
    inputs, labels = task.train_inputs, task.train_labels
    if part is not None:
        inputs, labels = inputs[part], labels[part]
    explicit.train(
        net,
        inputs,
        labels,
        lr=task.lr / slower,
        epochs=epochs,
        batch_size=task.batch_size,
        seed=task.seed,
        device=task.device,
        objective=objective,
        penalty=penalty,
        after_step=after_step,
        kept=task.kept,
        also=also,
    )


def keep_largest(net: nn.Module, count: int) -> Held:
    """Set to zero all weights but those of largest magnitude, of all layers together.

    Args:
        net: A copy of the task's network, changed in place.
        count: How many weights stay.

    Returns:
        What has to be held at zero if the network is trained further.
    """
    masks = largest(magnitudes(net), count)
    held = [(layer.weight, mask) for layer, mask in zip(layers(net), masks, strict=True)]
    hold(held)
    return held


def hold(held: Held) -> None:
    """Put back to zero what is held there.

    Args:
        held: Parameters and their masks.
    """
    for parameter, stays in held:
        clear(parameter, stays)
