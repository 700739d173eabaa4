"""Rows of a layer together: what one channel gets wrong, others make up for.

With targets W* and E = W* − W, the loss of single rows is Σ_i S_ii E_i G E_i' / 2. What counts is
tr(S E G E') / 2 with all of S = E gg', g the slopes of the outputs in the rows' pre-activations:
errors of two channels may cancel in the outputs, or add up. (That curvature is S times G is
the assumption of K-FAC: Martens, Grosse, "Optimizing Neural Networks with Kronecker-factored
Approximate Curvature", ICML 2015.) Given all other rows, row i is least squares on its own Gram, to
targets that are shifted by Σ_j S_ij E_j G / S_ii, j ≠ i.

A block of rows takes these steps D at once, each by the t_i that together are best: the minimum
over t is a small system with matrix S ∘ D G D'. So products are of matrices, which every processor
does far faster than one row after another, and no block ever raises the loss with S damped.
"""

from concurrent.futures import Executor
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.convex.cholesky import solve_factored
from simplicit.convex.gram import Gram
from simplicit.convex.problem import RowProblem
from simplicit.sparsity.near import factorised, ridge
from simplicit.workers.run import run

DAMPING = 0.3
"""Added to the diagonal of S, relative to it: a change of the outputs is not linear for long."""

SWEEPS = 3
"""Times that each row is solved, the others as they are; once where factors are not kept."""

BLOCKS = 8
"""Blocks of rows, as far as each has `LEAST`. Chosen on ResNet-20's layers: three sweeps leave 1 %
of the way to the minimum in the worst of them and a few hundredths in most; one row at a time
leaves 2 % and as much."""

LEAST = 2
"""Rows of a block."""

SIDE = 1e6
"""Multiply-adds of a row from which others take rows side by side. Chosen: a tenth of a
millisecond, about as long as it takes to hand a row over to a thread."""

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
    missing, coupling = gram.R - W @ gram.G, _damped(S, W)
    shift = (coupling / coupling.diagonal()[:, None]).fill_diagonal_(0.0) @ missing
    return gram.with_targets(gram.R + shift, gram.t2)


def refit_coupled(
    problem: RowProblem, W: Float[Tensor, "K N"], S: Coupling, executor: Executor | None = None
) -> Float[Tensor, "K N"]:
    """Minimise tr(S E G E'), S damped, over the supports, one block of rows after another.

    Args:
        problem: The rows; penalty and ball are left out.
        W: Weights, whose supports are kept; free features are in all of them.
        S: How the outputs couple the rows.
        executor: Takes rows side by side. Where factors are kept, threads here do: sending one
            takes as long as making it.

    Returns:
        Weights with no larger loss. Where the data do not say what one should be, it stays.
    """
    G, W = problem.gram.G, W.clone()
    support, coupling, missing = (W != 0) | problem.free, _damped(S, W), problem.gram.R - W @ G
    size = max(LEAST, -(-len(W) // BLOCKS))
    blocks = [slice(i, i + size) for i in range(0, len(W), size)]
    rows = range(len(W))
    small = ridge(problem)
    known: dict[int, Tensor] = {}
    most = float(support.sum(1).max()) if len(W) else 0.0
    many, products = kept(W), most**3 / 3
    side = executor if products >= SIDE else None
    for _ in range(SWEEPS if many else 1):
        for block in blocks:
            slopes = coupling[block] @ missing
            wanted = slopes / coupling.diagonal()[block, None]
            factors = [known.get(i) for i in rows[block]]
            pieces = zip(support[block], wanted, factors, strict=True)
            D = torch.zeros_like(slopes)
            one = partial(_step, problem, small, many)
            found = run(one, pieces, side, work=0 if many else products)
            for i, d, (columns, step, factor) in zip(rows[block], D, found, strict=True):
                d[columns] = step
                if factor is not None:
                    known[i] = factor
            moved = D @ G
            curvature = moved @ D.T
            # as the factors have it, ridge included: G may be flat along a step but for rounding
            curvature.diagonal().copy_((wanted * D).sum(1))
            t = _together(coupling[block, block] * curvature, (slopes * D).sum(1))
            W[block] += t * D
            missing[block] -= t * torch.where(support[block], wanted, moved)
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


# what rows that no output hears get wrong counts for themselves
def _damped(S: Coupling, like: Tensor) -> Tensor:
    own = (1 + DAMPING) * S.diagonal()
    heard = own > 0
    return torch.where(heard[:, None], S - S.diagonal().diag(), 0.0).to(like) + torch.where(
        heard, own, 1.0
    ).diag().to(like)


Step = tuple[Int[Tensor, " s"], Float[Tensor, " s"], Float[Tensor, "s s"] | None]


# where a row's own loss is least, and the factor if it is wanted again and is new
def _step(
    problem: RowProblem,
    small: Float[Tensor, " N"],
    again: bool,
    row: tuple[Bool[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, "s s"] | None],
) -> Step:
    on, wanted, factor = row
    columns = on.nonzero()[:, 0]
    new = factorised(problem, small, columns) if factor is None else factor
    step = solve_factored(new, wanted[columns, None])[:, 0]
    return columns, step, new if again and factor is None else None


# Of steps t_i along directions with curvature Q and slopes q, the best; none along one of no
# length. With a diagonal of 1, the damping leaves no eigenvalue below D / (1 + D) but by rounding.
def _together(Q: Float[Tensor, "b b"], q: Float[Tensor, " b"]) -> Float[Tensor, "b 1"]:
    unit = torch.where(Q.diagonal() > 0, Q.diagonal(), 1.0).sqrt()
    values, vectors = torch.linalg.eigh(Q / unit / unit[:, None])
    values = values.clamp_min(DAMPING / (1 + DAMPING))
    return vectors @ ((vectors.T @ (q / unit)) / values)[:, None] / unit[:, None]
