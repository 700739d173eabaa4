"""The equilibrium x = φ(Ax + Bu + b) and its derivatives; samples are rows, c = Bu + b.

Iterations stop as `fixed_point` documents, per sample. Derivatives come from the implicit function
theorem at the solution, so neither memory nor precision depends on the number of steps.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from simplicit._types import Inputs, States
from simplicit.equations.forward import all_states
from simplicit.equations.network import StateEquations
from simplicit.equations.operators import BlockOperator, constants
from simplicit.equations.stacked import Block
from simplicit.model.fixed_point import (
    MAX_STEPS,
    STATUSES,
    Equilibrium,
    NotConvergedError,
    Status,
    anderson,
    picard,
    relative_residual,
)

__all__ = [
    "Block",
    "Equilibrium",
    "NotConvergedError",
    "Status",
    "anderson",
    "exact",
    "implicit_solve",
    "iterated",
    "picard",
]

WARM_UP = 20
"""Picard steps before Anderson starts. Most samples need fewer, and an accelerated step costs
three times a plain one (10,000 samples, n = 112)."""


def implicit_solve(
    A: Float[Tensor, "n n"],
    c: States,
    phi: Callable[[Tensor], Tensor],
    *,
    method: Literal["picard", "anderson"] = "anderson",
    tol: float | None = None,
    max_steps: int = MAX_STEPS,
    history: bool = False,
) -> Equilibrium:
    """Solve x = φ(Ax + c) for any A by iteration; the states are differentiable in A and c.

    Args:
        A: State matrix.
        c: Bu + b.
        phi: Elementwise φ of all states.
        method: Iteration; `anderson` starts with a few Picard steps.
        tol: Largest accepted residual; by default that of the dtype.
        max_steps: Largest number of evaluations of φ(Ax + c), forward and backward each.
        history: Whether to record the residual of every step.

    Returns:
        The equilibria. A backward pass whose own solve does not converge raises
        `NotConvergedError`.
    """
    iterate = picard if method == "picard" else partial(anderson, warm_up=WARM_UP)
    iterate = partial(iterate, tol=tol, max_steps=max_steps)
    with torch.no_grad():
        found = iterate(lambda x, c: phi(x @ A.T + c), torch.zeros_like(c), c, history=history)
    return replace(found, states=_Implicit.apply(A, c, found.states, phi, iterate))


class _Implicit(torch.autograd.Function):
    """Implicit function theorem at x = φ(Ax + c), with D = diag φ'(Ax + c) of each sample.

    dx = D (A dx + dA x + dc), so a cotangent v of x gives g = D w with w = v + Aᵀ D w, and then
    g is the cotangent of c and Σ g xᵀ that of A.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, c: Tensor, x: Tensor, phi: Any, iterate: Any) -> Tensor:
        ctx.save_for_backward(A, c, x)
        ctx.phi, ctx.iterate = phi, iterate
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        A, c, x = ctx.saved_tensors
        (v,) = grad_outputs
        with torch.enable_grad():
            z = (x @ A.T + c).requires_grad_()
            (D,) = torch.autograd.grad(ctx.phi(z).sum(), z)
        # The stop rule has an absolute floor of 1; cotangents of a mean loss are far smaller.
        scale = v.abs().amax(1, keepdim=True)
        scale = torch.where(scale > 0, scale, 1.0)
        v = v / scale
        found = ctx.iterate(lambda w, v, D: v + (D * w) @ A, v, v, D)
        found.require_converged()
        g = D * found.states * scale
        return g.T @ x, g, None, None, None


def exact(equations: StateEquations, u: Inputs) -> Equilibrium:
    """Solve x = φ(Ax + Bu + b) of a network without feedback: one pass, first layer first.

    The result is exact up to rounding, and differentiable by plain autograd.

    Args:
        equations: The network.
        u: Inputs, flattened.

    Returns:
        The equilibria, with the residual of the equation as a whole; steps is the number of layers.
    """
    x = all_states(equations, u)
    with torch.no_grad():
        z = BlockOperator(equations, "A")(x) + _given(equations, u)
        residual = relative_residual(equations.activate(z), x)
    codes = torch.full_like(residual, STATUSES.index(Status.DIVERGED), dtype=torch.int64)
    codes[x.isfinite().all(1)] = STATUSES.index(Status.CONVERGED)
    codes[~u.isfinite().all(1)] = STATUSES.index(Status.INVALID_INPUT)
    counts = torch.full_like(codes, len(equations.hidden))
    return Equilibrium(x, residual, counts, tuple(STATUSES[i] for i in codes.tolist()))


def iterated(equations: StateEquations, u: Inputs, **options: Any) -> Equilibrium:
    """Solve x = φ(Ax + Bu + b) with A written out, by `implicit_solve`.

    Args:
        equations: A network of elementwise activations, with or without feedback.
        u: Inputs, flattened.
        **options: Of `implicit_solve`.

    Returns:
        The equilibria, differentiable in the weights.
    """
    A = BlockOperator(equations, "A").to_dense()
    return implicit_solve(A, _given(equations, u), equations.activate, **options)


# Bu + b
def _given(equations: StateEquations, u: Inputs) -> Tensor:
    Bu, b = BlockOperator(equations, "B")(u), constants(equations)[0]
    return Bu if b is None else Bu + b
