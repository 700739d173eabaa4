"""Whole numbers that add up to a budget: in proportion to sizes, or where removal costs most."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def shares(sizes: Sequence[int], budget: int) -> list[int]:
    """Split a budget in proportion; what rounding leaves goes where most room is.

    Args:
        sizes: Most that each part can take.
        budget: To be split.

    Returns:
        Each part's share, within one of its proportion; together the budget, or all sizes where
        it is larger.
    """
    total = max(sum(sizes), 1)
    parts = [min(size, budget * size // total) for size in sizes]
    left = min(budget, sum(sizes)) - sum(parts)
    for index in sorted(range(len(sizes)), key=lambda i: parts[i] - sizes[i])[:left]:
        parts[index] += 1
    return parts


def spend(costs: Sequence[Float[Tensor, "_"]], budget: int) -> list[int]:
    """Choose how many weights each row keeps, so that those that cost most to remove are kept.

    A removal is never cheaper than those before it: what counts is the largest cost so far.

    Args:
        costs: For each row the loss that each removal adds, the last weight's last.
        budget: Weights to keep in all rows together.

    Returns:
        Weights kept in each row; their sum is the budget, or all weights where it is larger.
    """
    lengths = [len(cost) for cost in costs]
    if not sum(lengths):
        return lengths
    levels = torch.cat([cost.cummax(0).values if len(cost) else cost for cost in costs])
    owner = torch.repeat_interleave(torch.arange(len(costs)), torch.tensor(lengths))
    # stable, and latest first, so that of equal levels in a row the later ones are kept
    ranked = levels.flip(0).argsort(descending=True, stable=True)
    kept = owner.flip(0)[ranked.cpu()[:budget]]
    return torch.bincount(kept, minlength=len(costs)).tolist()
