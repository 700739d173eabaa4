"""What a first-order method has to offer, so that the stages of the solver can use it."""

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from simplicit.convex.scaled import ScaledRows


@runtime_checkable
class State(Protocol):
    """Iterates of some rows: a frozen dataclass of tensors, each with one entry a row or scalar."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def W(self) -> Tensor:
        """Weights in scaled coordinates, inside the ball, (K, n)."""
        ...

    @property
    def mu(self) -> Tensor:
        """The ball's multiplier, (K, 1)."""
        ...

    @property
    def sigma(self) -> Tensor:
        """Root mean square residual for the rooted loss, 1 for the squared one, (K, 1)."""
        ...


@runtime_checkable
class Method(Protocol):
    """A first-order method: frozen settings, and two functions that remember nothing."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the iterations. Certificates are float64 whatever it is."""
        ...

    def init(self, problem: ScaledRows, V: Tensor) -> State:
        """Start from weights.

        Args:
            problem: K rows over n features, in the precision of `dtype`.
            V: Scaled weights inside the ball, (K, n), in that precision.

        Returns:
            The first state.
        """
        ...

    def step(self, problem: ScaledRows, state: Any) -> State:
        """Iterate once.

        Args:
            problem: The rows that `init` got, or some of them.
            state: The state of these rows, from `init` or the last step. It is used up: the method
                may write the next state over it.

        Returns:
            The next state.
        """
        ...
