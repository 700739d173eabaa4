"""What every baseline is given: a trained network, and data to prune it with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from simplicit.errors import InputError
from simplicit.explicit.kept import Trainings
from simplicit.explicit.training import evaluating


@dataclass(frozen=True)
class Task:
    """A trained network to prune, and what may be used for it.

    Args:
        net: The trained network; no baseline changes it.
        calibration: Unlabelled inputs, all that the one-shot methods see.
        train_inputs: Inputs for the methods that train.
        train_labels: Their classes, from 0.
        epochs: Passes over them that one training may take.
        batch_size: Samples a step.
        lr: Learning rate of Adam.
        seed: The same seed gives the same bits on one CPU.
        eps: Radius in l∞ that the robust methods train for.
        kept: Where trainings keep their states, for a run that is stopped and taken up.

    Raises:
        InputError: If the calibration set is empty or not finite, or `epochs` is below 0.
    """

    net: nn.Module
    calibration: Float[Tensor, "m *shape"]
    train_inputs: Float[Tensor, "n *shape"]
    train_labels: Int[Tensor, "n"]
    epochs: int = 5
    batch_size: int = 64
    lr: float = 1e-3
    seed: int = 0
    eps: float = 0.05
    kept: Trainings = field(default_factory=Trainings)

    def __post_init__(self) -> None:
        if len(self.calibration) == 0:
            raise InputError("the calibration set is empty: at least one sample is needed")
        if not self.calibration.isfinite().all():
            raise InputError("the calibration inputs hold NaN or infinity: all must be finite")
        if self.epochs < 0:
            raise InputError(f"epochs is {self.epochs}: accepted is 0 or more")

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are."""
        parameter = next(self.net.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @contextmanager
    def observing(self, net: nn.Module) -> Iterator[None]:
        """Evaluation mode, no gradients and the task's seed inside the block; no trace after it.

        Args:
            net: The network that runs in it.

        Yields:
            Nothing.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), evaluating(net), torch.no_grad():
            torch.manual_seed(self.seed)
            yield
