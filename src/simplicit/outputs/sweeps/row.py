"""One row, or a few with the same zeros: which of its weights go, and where the others end up."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.outputs.path_norm import shrink
from simplicit.sparsity.elimination import one_row
from simplicit.sparsity.elimination.of_blocks import eliminate_blocks


def refit(
    inverse: Float[Tensor, "s s"],
    slope: Float[Tensor, " s"],
    old: Float[Tensor, " s"],
    gone: Int[Tensor, " g"],
    price: Float[Tensor, " s"] | None = None,
) -> Float[Tensor, " s"]:
    """Minimise ½ δ'Hδ − slope'δ + Σ price |w| over w = old + δ that are zero where weights go.

    With a price, weights go after it: what stays takes over from them.

    Args:
        inverse: Of H, positive definite: the row's Gram on its support.
        slope: How fast the distance falls in each weight.
        old: The weights.
        gone: Which go.
        price: Of |w|, at least 0; nothing costs without.

    Returns:
        The weights.
    """
    w = old + inverse @ slope
    if price is not None:
        H = torch.cholesky_inverse(torch.linalg.cholesky(inverse))
        w = shrink(H, H @ old + slope, old, price)
    if len(gone):
        # what stays takes over from what goes, all at once
        w = w - inverse[:, gone] @ torch.linalg.solve(inverse[gone][:, gone], w[gone])
        w[gone] = 0.0
    return w


def choose(
    inverse: Float[Tensor, "s s"],
    w: Float[Tensor, " s"],
    free: Bool[Tensor, " s"],
    keep: int | None,
    losing: float,
) -> tuple[Int[Tensor, " g"], Float[Tensor, " c"]]:
    """Choose which weights of a row go.

    Args:
        inverse: Of the row's Gram on its support.
        w: Weights that minimise the row's loss.
        free: Features that are never removed.
        keep: Weights to leave, free features not counted; all without.
        losing: Most of its weights that the row may lose the next time, as a part of them.

    Returns:
        Which go; and what each further removal would cost, the cheapest first, infinity for those
        that may not go.
    """
    weights = int((~free).sum())
    keep = weights if keep is None else min(keep, weights)
    surely = int((1 - losing) * keep)
    order, cost = one_row.eliminate(inverse, w, free, surely)
    count = weights - keep
    return order[:count], torch.cat([cost[count:], cost.new_full((surely,), torch.inf)])


def choose_blocks(
    inverse: Float[Tensor, "r s s"],
    w: Float[Tensor, "r s"],
    block: Int[Tensor, " s"],
    keep: int | None,
    losing: float,
) -> tuple[Int[Tensor, " g"], Float[Tensor, " c"]]:
    """Choose which features go from rows that share their zeros, block by block.

    Args:
        inverse: Inverse of each row's Gram on their support.
        w: Weights that minimise each row's loss.
        block: Number of each feature's block; −1 for those that are never removed.
        keep: Weights to leave in all rows together, at most; all without.
        losing: Most of their weights that they may lose the next time, as a part of them.

    Returns:
        Which features go; and what each further removal of a weight would cost, the cheapest first,
        infinity for those that may not go.
    """
    rows, features = len(w), int((block >= 0).sum())
    left = features if keep is None else min(keep // rows, features)
    removals = eliminate_blocks(inverse, w, block, int((1 - losing) * left))
    gone = torch.isin(block, removals.order[: removals.gone(left)].to(block)).nonzero()[:, 0]
    return gone, removals.by_weight[rows * len(gone) :]
