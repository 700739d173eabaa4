"""Elementwise activations φ and the facts the certificates need about each."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import InputError

PhiName = Literal["relu", "leaky_relu", "tanh", "sigmoid", "identity"]


@dataclass(frozen=True)
class Phi:
    """An elementwise, monotone activation x = φ(z).

    Args:
        name: One of `relu`, `leaky_relu`, `tanh`, `sigmoid`, `identity`.
        slope: Slope of `leaky_relu` below zero, in [0, ∞); ignored by the others.

    Raises:
        InputError: On an unknown name or a slope that is negative or not finite.
    """

    name: PhiName
    slope: float = 0.01

    def __post_init__(self) -> None:
        if self.name not in get_args(PhiName):
            raise InputError(
                f"activation {self.name!r}: accepted are {', '.join(get_args(PhiName))}"
            )
        if not (0.0 <= self.slope < math.inf):
            raise InputError(f"leaky_relu slope {self.slope}: must be finite and at least 0")

    def __call__(self, z: Tensor) -> Tensor:
        """Apply φ to every entry; any shape in, the same shape out.

        Returns:
            φ(z).
        """
        match self.name:
            case "relu":
                return torch.relu(z)
            case "leaky_relu":
                return torch.nn.functional.leaky_relu(z, self.slope)
            case "tanh":
                return torch.tanh(z)
            case "sigmoid":
                return torch.sigmoid(z)
            case "identity":
                return z

    def derivative(self, z: Tensor) -> Tensor:
        """Differentiate φ at every entry; at a kink, from the left.

        Returns:
            φ'(z).
        """
        match self.name:
            case "relu":
                return (z > 0).to(z.dtype)
            case "leaky_relu":
                return torch.where(z > 0, torch.ones_like(z), self.slope)
            case "tanh":
                return 1 - torch.tanh(z) ** 2
            case "sigmoid":
                return torch.sigmoid(z) * torch.sigmoid(-z)
            case "identity":
                return torch.ones_like(z)

    @property
    def lipschitz(self) -> float:
        """Smallest L with |φ(s) − φ(t)| ≤ L |s − t|; it enters every well-posedness bound."""
        match self.name:
            case "leaky_relu":
                return max(1.0, self.slope)
            case "sigmoid":
                return 0.25
            case _:
                return 1.0

    @property
    def homogeneous(self) -> bool:
        """Whether φ(s z) = s φ(z) for s > 0, which allows exact rescaling of states."""
        return self.name in ("relu", "leaky_relu", "identity")
