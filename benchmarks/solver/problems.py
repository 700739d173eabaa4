"""The problems of the comparison: samples, and the penalties that give a wanted share of zeros."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from simplicit.calibration.rows import rows_of
from simplicit.calibration.structure import structured
from simplicit.capture.read import capture
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.data import datasets as data
from simplicit.explicit import training as explicit
from simplicit.solvers import solve


@dataclass(frozen=True)
class Rows:
    """Rows on one design, (m, N) and (m, K), with their Gram."""

    V: Tensor
    T: Tensor

    @cached_property
    def gram(self) -> Gram:
        """The moments, which no solver changes."""
        return Gram.from_data(self.V, self.T)

    def problem(self, kind: str, level: float) -> RowProblem:
        """Each row's penalty is the level times the one above which all its weights are zero."""
        gram = self.gram
        top = gram.R.abs().amax(1)
        if kind == "l0+l2":
            # the slope beside zero, sqrt(2 l0 l2), is level * top as for the lasso
            l2 = 0.05
            return RowProblem(gram, Penalty(l0=(level * top) ** 2 / (2 * l2), l2=l2))
        if kind == "root":
            rooted = top / gram.t2.sqrt()
            return RowProblem(gram, Penalty(l1=level * rooted), loss="root")
        problem = RowProblem(gram, Penalty(l1=level * top))
        if kind == "ball":
            whole = solve(problem, tol=1e-6).W.abs().sum(1)
            problem = replace(problem, ball=Ball(slice(None), 0.5 * whole))
        return problem


def network(folder: Path) -> tuple[torch.nn.Module, Tensor]:
    """Train the Fashion-MNIST network of the papers, as `simplicit run` does."""
    dataset = data.load("FashionMNIST", folder)
    net = explicit.build("fnn", [784, 64, 32, 16, 10], bias=False, arguments={}, seed=0)
    explicit.train(net, dataset.train_inputs, dataset.train_labels, batch_size=64, seed=0)
    return net, dataset.train_inputs[data.sample(len(dataset.train_labels), 0.2, 0)]


def first_layer(net: torch.nn.Module, inputs: Tensor) -> list[Rows]:
    linear = next(m for m in net.modules() if isinstance(m, torch.nn.Linear))
    U = inputs.flatten(1)
    V = U.double()
    with torch.no_grad():
        return [Rows(V / V.square().mean().sqrt(), linear(U).double())]


def triangular(net: torch.nn.Module, inputs: Tensor) -> list[Rows]:
    network = capture(net, inputs[:1])
    with torch.no_grad():
        Z, Y = network.replay(inputs)
    sources = [*(e.phi(z) for e, z in zip(network.hidden, Z, strict=True)), inputs.flatten(1)]
    equations, found = structured(network, "triangular"), []
    for rows, target in zip(rows_of(equations), [*Z, Y], strict=True):
        V = rows.features(equations.layers[rows.index], sources)[0].double()
        parts = V.split([size for _, size in rows.sources(equations)], dim=1)
        # as in a match: features of one source have one scale
        V = torch.cat([part / part.square().mean().sqrt() for part in parts], dim=1)
        found.append(Rows(V, target.double()))
    return found


def synthetic(N: int, m: int, K: int, condition: float) -> list[Rows]:
    """Gaussian features with eigenvalues spread to a condition number; 5 % true weights."""
    random = torch.Generator().manual_seed(0)
    V = torch.randn(m, N, generator=random, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(N, 64, generator=random, dtype=torch.float64))[0]
    # a reflection mixes the features, so that the spread is not one of column lengths alone
    V = V * torch.logspace(0, -0.5 * torch.log10(torch.tensor(condition)).item(), N).double()
    V = V - 2 * (V @ basis) @ basis.T
    W = torch.randn(K, N, generator=random, dtype=torch.float64)
    W *= torch.rand(K, N, generator=random) < 0.05
    T = V @ W.T
    T += 0.3 * T.std(0) * torch.randn(m, K, generator=random, dtype=torch.float64)
    return [Rows(V, T)]


def level_for(blocks: list[Rows], kind: str, zeros: float) -> float:
    """Bisect the level that leaves this share of the weights at zero."""
    low, high = 1e-5, 1.0
    for _ in range(12):
        level = (low * high) ** 0.5
        W = [solve(rows.problem(kind, level), tol=1e-4).W for rows in blocks]
        share = sum(int((w == 0).sum()) for w in W) / sum(w.numel() for w in W)
        low, high = (level, high) if share < zeros else (low, level)
        if abs(share - zeros) < 0.005:
            break
    return level
