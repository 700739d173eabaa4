"""Small random systems x = φ(Ax + c) with known properties, for the tests of equilibria."""

import torch
from torch import Tensor

from simplicit.equations.phi import Phi
from simplicit.model.equilibrium import Block
from simplicit.model.implicit import ImplicitModel, Structure

PHIS = [
    Phi("relu"),
    Phi("leaky_relu", 0.2),
    Phi("leaky_relu", 1.5),
    Phi("tanh"),
    Phi("sigmoid"),
    Phi("identity"),
]
MIXED = (
    Block("fc3", 3, Phi("tanh")),
    Block("fc2", 4, Phi("relu")),
    Block("fc1", 5, Phi("sigmoid")),
)


def same(phi: Phi) -> tuple[Block, ...]:
    """Three layers with one φ."""
    return tuple(Block(block.name, block.size, phi) for block in MIXED)


def lipschitz(blocks: tuple[Block, ...]) -> Tensor:
    values = [block.phi.lipschitz for block in blocks for _ in range(block.size)]
    return torch.tensor(values, dtype=torch.float64)


def contraction(
    n: int, kappa: float, seed: int = 0, weights: Tensor | None = None, *, positive: bool = False
) -> Tensor:
    """A whose every row meets Σ|A_ij| ω_j = κ ω_i; non-negative ones contract no faster than κ."""
    A = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    A = A.abs() if positive else A
    omega = torch.ones(n, dtype=A.dtype) if weights is None else weights
    return A * (kappa * omega / (A.abs() @ omega)).unsqueeze(1)


def strictly_upper(A: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """A without the entries on and below its diagonal blocks."""
    layer = torch.cat([torch.full((block.size,), i) for i, block in enumerate(blocks)])
    return A * (layer.unsqueeze(1) < layer)


def implicit_model(
    structure: Structure,
    blocks: tuple[Block, ...] = MIXED,
    *,
    bias: bool = True,
    input_shape: tuple[int, ...] = (2, 3),
    density: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> ImplicitModel:
    """A well-posed model with q = 2 and, for `full`, row norms 0.9 / L."""
    generator = torch.Generator().manual_seed(seed)
    n, p, q = sum(block.size for block in blocks), torch.Size(input_shape).numel(), 2

    def draw(*shape: int) -> Tensor:
        values = torch.randn(*shape, dtype=torch.float64, generator=generator)
        return values * (torch.rand(*shape, generator=generator) < density)

    A, B, C, D = contraction(n, 0.9, seed), draw(n, p), draw(q, n), draw(q, p)
    A = A * (torch.rand(n, n, generator=generator) < density) / lipschitz(blocks).unsqueeze(1)
    if structure != "full":
        A = 5 * strictly_upper(A, blocks)
    if structure == "layered":
        head, tail = blocks[0].size, n - blocks[-1].size
        A[:head, head + blocks[1].size :] = 0
        B[:tail], C[:, head:], D[:] = 0, 0, 0
    b, d = (draw(n), draw(q)) if bias else (None, None)
    return ImplicitModel(
        *(t.to(dtype) for t in (A, B, C, D)),
        *(t if t is None else t.to(dtype) for t in (b, d)),
        blocks=blocks,
        structure=structure,
        input_shape=input_shape,
        reference_nonzeros=100,
    )


def inputs(model: ImplicitModel, m: int = 7, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, *model.input_shape, dtype=model.learned[0].dtype, generator=generator)
