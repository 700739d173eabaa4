"""The equilibrium x = φ(Ax + Bu + b) and its derivatives; samples are rows, c = Bu + b.

Iterations stop as `fixed_point` documents, per sample. Derivatives come from the implicit function
theorem at the solution, so neither memory nor precision depends on the number of steps.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from simplicit._types import Inputs, States
from simplicit.equations.forward import all_states
from simplicit.equations.network import StateEquations
from simplicit.equations.operators import BlockOperator, constants
from simplicit.equations.stacked import Block
from simplicit.errors import InputError
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
    "apply_phi",
    "exact_pass",
    "implicit_solve",
    "picard",
    "require_block_triangular",
]

WARM_UP = 20
"""Picard steps before Anderson starts. Most samples need fewer, and an accelerated step costs
three times a plain one (10,000 samples, n = 112)."""


def apply_phi(z: States, blocks: Sequence[Block]) -> States:
    """Apply each block's own φ to its part of z.

    Returns:
        x of the same shape.
    """
    if len({block.phi for block in blocks}) == 1:
        return blocks[0].phi(z)
    pieces = z.split([block.size for block in blocks], dim=1)
    return torch.cat([b.phi(piece) for b, piece in zip(blocks, pieces, strict=True)], dim=1)


def exact_pass(A: Float[Tensor, "n n"], c: States, blocks: Sequence[Block]) -> Equilibrium:
    """Solve x = φ(Ax + c) for strictly block upper triangular A: one pass, first layer first.

    A block needs only the blocks behind it in x, that is, the earlier layers. The result is exact
    up to rounding and differentiable by plain autograd. An A with a non-zero on or below its
    diagonal blocks is refused with an `InputError`.

    Args:
        A: State matrix.
        c: Bu + b.
        blocks: Layers in the order of x, last hidden layer first.

    Returns:
        The equilibria; steps is the number of blocks.
    """
    require_block_triangular(A, blocks)
    x, stop = c[:, :0], len(A)
    for block in reversed(blocks):
        start = stop - block.size
        z = c[:, start:stop] + x @ A[start:stop, stop:].T
        x, stop = torch.cat([block.phi(z), x], dim=1), start
    with torch.no_grad():
        again = apply_phi(x @ A.T + c, blocks)
    return judged(x, again, c.isfinite().all(1), len(blocks))


def judged(x: States, again: States, valid: Bool[Tensor, " m"], steps: int) -> Equilibrium:
    """Say of states computed in one pass what an iteration would say of its own.

    Args:
        x: The states.
        again: φ(Ax + Bu + b) of them.
        valid: Samples whose inputs are finite.
        steps: Blocks that were computed.

    Returns:
        The equilibria.
    """
    residual = relative_residual(again, x).detach()
    codes = torch.full_like(residual, STATUSES.index(Status.DIVERGED), dtype=torch.int64)
    codes[x.isfinite().all(1)] = STATUSES.index(Status.CONVERGED)
    codes[~valid] = STATUSES.index(Status.INVALID_INPUT)
    counts = torch.full_like(codes, steps)
    return Equilibrium(x, residual, counts, tuple(STATUSES[i] for i in codes.tolist()))


def require_block_triangular(A: Float[Tensor, "n n"], blocks: Sequence[Block]) -> None:
    """Do nothing if A is strictly block upper triangular.

    Raises:
        InputError: Otherwise, naming the first block in the way.
    """
    stop = 0
    for block in blocks:
        start, stop = stop, stop + block.size
        if A[start:stop, :stop].any():
            raise InputError(
                f"A: block {block.name!r} uses itself or a later layer; accepted is a strictly "
                "block upper triangular A (last hidden layer first), or structure 'full'"
            )


def implicit_solve(
    A: Float[Tensor, "n n"],
    c: States,
    blocks: Sequence[Block],
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
        blocks: Layers in the order of x, last hidden layer first.
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
        found = iterate(
            lambda x, c: apply_phi(x @ A.T + c, blocks), torch.zeros_like(c), c, history=history
        )
    return replace(found, states=_Implicit.apply(A, c, found.states, blocks, iterate))


class _Implicit(torch.autograd.Function):
    """Implicit function theorem at x = φ(Ax + c), with D = diag φ'(Ax + c) of each sample.

    dx = D (A dx + dA x + dc), so a cotangent v of x gives g = D w with w = v + Aᵀ D w, and then
    g is the cotangent of c and Σ g xᵀ that of A.
    """

    @staticmethod
    def forward(
        ctx: Any, A: Tensor, c: Tensor, x: Tensor, blocks: Sequence[Block], iterate: Any
    ) -> Tensor:
        ctx.save_for_backward(A, c, x)
        ctx.blocks, ctx.iterate = blocks, iterate
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        A, c, x = ctx.saved_tensors
        (v,) = grad_outputs
        with torch.enable_grad():
            z = (x @ A.T + c).requires_grad_()
            (D,) = torch.autograd.grad(apply_phi(z, ctx.blocks).sum(), z)
        # The stop rule has an absolute floor of 1; cotangents of a mean loss are far smaller.
        scale = v.abs().amax(1, keepdim=True)
        scale = torch.where(scale > 0, scale, 1.0)
        v = v / scale
        found = ctx.iterate(lambda w, v, D: v + (D * w) @ A, v, v, D)
        found.require_converged()
        g = D * found.states * scale
        return g.T @ x, g, None, None, None


def exact(equations: StateEquations, u: Inputs) -> Equilibrium:
    """Solve the equation in one pass, and look at it once more as x = φ(Ax + Bu + b).

    Args:
        equations: The network.
        u: Inputs, flattened.

    Returns:
        The equilibria; steps is the number of layers.
    """
    x = all_states(equations, u)
    with torch.no_grad():
        A, B = BlockOperator(equations, "A"), BlockOperator(equations, "B")
        again = equations.activate(A(x) + B(u) + constants(equations)[0])
    return judged(x, again, u.isfinite().all(1), len(equations.hidden))
