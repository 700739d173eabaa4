"""One row, or a few with the same zeros: refitted, with the weights that go and what more cost."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.outputs.path_norm import shrink
from simplicit.sparsity.block_elimination import eliminate_blocks
from simplicit.sparsity.elimination import eliminate


def solve(
    H: Float[Tensor, "s s"],
    slope: Float[Tensor, " s"],
    old: Float[Tensor, " s"],
    price: Float[Tensor, " s"],
    free: Bool[Tensor, " s"],
    keep: int | None,
    losing: float | None,
) -> tuple[Float[Tensor, " s"], Float[Tensor, " c"] | None, int]:
    """Minimise ½ δ'Hδ − slope'δ + Σ price |w| over w = old + δ, and remove weights.

    Args:
        H: The row's Gram on its support, positive definite.
        slope: How fast the distance falls in each weight.
        old: The weights.
        price: Of |w|, at least 0.
        free: Features that are never removed.
        keep: Weights to leave, free features not counted; all without.
        losing: Most of its weights that the row may lose the next time, as a part of them. Without
            it nothing is removed.

    Returns:
        The weights; what each further removal would cost, the cheapest first, infinity for those
        that may not go; and how many have gone.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    w = old + inverse @ slope
    if bool(price.any()):
        w = shrink(H, H @ old + slope, old, price)
    if losing is None:
        return w, None, 0
    weights = int((~free).sum())
    keep = weights if keep is None else min(keep, weights)
    surely = int((1 - losing) * keep)
    (order,), (cost,) = eliminate(inverse, w[None], free, surely)
    count = weights - keep
    costs = torch.cat([cost[count:], cost.new_full((surely,), torch.inf)])
    gone = order[:count]
    if count:
        # what stays takes over from what goes, all at once
        w = w - inverse[:, gone] @ torch.linalg.solve(inverse[gone][:, gone], w[gone])
        w[gone] = 0.0
    return w, costs, count


def without_blocks(
    inverse: Float[Tensor, "r s s"],
    w: Float[Tensor, "r s"],
    block: Int[Tensor, " s"],
    keep: int | None,
    losing: float,
) -> tuple[Float[Tensor, "r s"], Float[Tensor, " c"], int]:
    """Remove features from rows that share their zeros, block by block.

    Args:
        inverse: Inverse of each row's Gram on their support.
        w: Weights that minimise each row's loss.
        block: Number of each feature's block; −1 for those that are never removed.
        keep: Weights to leave in all rows together, at most; all without.
        losing: Most of their weights that they may lose the next time, as a part of them.

    Returns:
        The weights; what each further removal would cost, the cheapest first, infinity for those
        that may not go; and how many weights have gone.
    """
    rows, features = len(w), int((block >= 0).sum())
    left = features if keep is None else min(keep // rows, features)
    removals = eliminate_blocks(inverse, w, block, int((1 - losing) * left))
    count = removals.gone(left)
    gone = torch.isin(block, removals.order[:count].to(block))
    if count:
        # what stays takes over from what goes, all at once
        wanted = torch.linalg.solve(inverse[:, gone][:, :, gone], w[:, gone, None])
        w = w - (inverse[:, :, gone] @ wanted)[..., 0]
        w[:, gone] = 0.0
    costs = removals.by_weight[rows * int(gone.sum()) :]
    return w, costs, rows * int(gone.sum())
