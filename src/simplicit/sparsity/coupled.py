"""Rows of a layer together: what one channel gets wrong, others make up for.

With targets W* and E = W* − W, the loss of single rows is Σ_i S_ii E_i G E_i' / 2. What counts is
tr(S E G E') / 2 with all of S = E gg', g the slopes of the outputs in the rows' pre-activations:
errors of two channels may cancel in the outputs, or add up. (That curvature is S times G is
the assumption of K-FAC: Martens, Grosse, "Optimizing Neural Networks with Kronecker-factored
Approximate Curvature", ICML 2015.) Given all other rows, row i is least squares on its own Gram, to
targets that are shifted by Σ_j S_ij E_j G / S_ii, j ≠ i.
"""

from collections.abc import Iterable
from concurrent.futures import Executor

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.convex.gram import Gram
from simplicit.convex.problem import RowProblem
from simplicit.convex.products import weighted_rows
from simplicit.sparsity.near import factors

DAMPING = 0.3
"""Added to the diagonal of S, relative to it: a change of the outputs is not linear for long."""

SWEEPS = 3
"""Times that each row is solved, the others as they are; once where factors are not kept."""

KEPT = 2**30
"""Bytes of factors, at most, that are kept from sweep to sweep."""

Coupling = Float[Tensor, "K K"]


def shifted(gram: Gram, W: Float[Tensor, "K N"], S: Coupling) -> Gram:
    """Write targets of the rows that make up for what all others get wrong.

    Args:
        gram: Moments of the rows.
        W: Their weights.
        S: How the outputs couple them.

    Returns:
        Moments with these targets; t2 is left as it is.
    """
    missing = gram.R - W @ gram.G
    return gram.with_targets(gram.R + _ratios(S, W) @ missing - missing, gram.t2)


def refit_coupled(
    problem: RowProblem, W: Float[Tensor, "K N"], S: Coupling, executor: Executor | None = None
) -> Float[Tensor, "K N"]:
    """Minimise tr(S E G E') over the supports, one row after another.

    Args:
        problem: The rows; penalty and ball are left out.
        W: Weights, whose supports are kept; free features are in all of them.
        S: How the outputs couple the rows.
        executor: Factorises supports side by side.

    Returns:
        Weights with no larger loss. Where the data do not say what one should be, it stays.
    """
    G, W, many = problem.gram.G, W.clone(), kept(W)
    ratios, missing = _ratios(S, W), problem.gram.R - W @ G
    found: Iterable[tuple[Tensor, Tensor]] = factors(problem, W != 0, executor)
    if many:
        found = list(found)
    for _ in range(SWEEPS if many else 1):
        for i, (columns, factor) in enumerate(found):
            wanted = (ratios[i] @ missing)[columns, None]
            step = torch.zeros_like(W[:1])
            step[0, columns] = torch.cholesky_solve(wanted, factor)[:, 0]
            W[i] += step[0]
            missing[i] -= weighted_rows(step, G)[0]
    return W


def kept(W: Float[Tensor, "K N"]) -> bool:
    """Say whether the factors of all rows are kept from sweep to sweep.

    Args:
        W: Their weights.

    Returns:
        Whether they have room.
    """
    sizes = torch.count_nonzero(W, dim=1).double()
    return float(sizes.square().sum()) * W.element_size() <= KEPT


# S_ij / S_ii; rows that no output hears are on their own
def _ratios(S: Coupling, like: Tensor) -> Tensor:
    own = (1 + DAMPING) * S.diagonal()[:, None]
    return torch.where(own > 0, S / own, 0.0).fill_diagonal_(1.0).to(like)
