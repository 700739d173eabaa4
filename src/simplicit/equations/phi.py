"""Elementwise activations φ and the facts the certificates need about each."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from simplicit.errors import InputError

PhiName = Literal[
    "relu", "leaky_relu", "relu6", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh", "identity"
]

STEEPEST = {"sigmoid": 0.25, "silu": 1.099840, "gelu": 1.128905, "gelu_tanh": 1.128994}
"""Largest |φ'| where it is not 1, rounded up in the sixth decimal: that of SiLU is at z = 2.3994,
of GELU at √2 (Φ(√2) + √2 Φ'(√2)), of its tanh form at 1.4185. Found by bounded minimisation of −φ'
and checked on a grid of step 1e-3 over [−20, 20]."""


@dataclass(frozen=True)
class Phi:
    """An elementwise activation x = φ(z); all but SiLU and GELU are monotone.

    Args:
        name: One of `relu`, `leaky_relu`, `relu6`, `tanh`, `sigmoid`, `silu`, `gelu`, `gelu_tanh`
            (its approximation) and `identity`.
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
            case "relu6":
                return torch.nn.functional.relu6(z)
            case "tanh":
                return torch.tanh(z)
            case "sigmoid":
                return torch.sigmoid(z)
            case "silu":
                return torch.nn.functional.silu(z)
            case "gelu":
                return torch.nn.functional.gelu(z)
            case "gelu_tanh":
                return torch.nn.functional.gelu(z, approximate="tanh")
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
            case "relu6":
                return ((z > 0) & (z <= 6)).to(z.dtype)
            case "tanh":
                return 1 - torch.tanh(z) ** 2
            case "sigmoid":
                return torch.sigmoid(z) * torch.sigmoid(-z)
            case "silu" | "gelu" | "gelu_tanh":
                with torch.enable_grad():
                    at = z.detach().requires_grad_()
                    (slope,) = torch.autograd.grad(self(at).sum(), at)
                return slope
            case "identity":
                return torch.ones_like(z)

    @property
    def lipschitz(self) -> float:
        """Smallest L with |φ(s) − φ(t)| ≤ L |s − t|; it enters every well-posedness bound."""
        if self.name == "leaky_relu":
            return max(1.0, self.slope)
        return STEEPEST.get(self.name, 1.0)

    @property
    def homogeneous(self) -> bool:
        """Whether φ(s z) = s φ(z) for s > 0, which allows exact rescaling of states."""
        return self.name in ("relu", "leaky_relu", "identity")
