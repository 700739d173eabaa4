"""How a budget is spent, from top to bottom.

`sparsity` says how many weights the model may have: `wanted`. Weights of operations that are kept
as they are, and of skipped layers, are not removed, so they come first. The plan puts a price on
every weight that is left, the loss that its removal adds, and `spend` keeps the most expensive ones
over all rows together; with a penalty in place of prices, `shares` splits the budget by what the
penalty left. Where sweeps follow, layers are matched with more weights, `first_budget`, and the
sweeps remove the rest, each by the same factor.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.errors import InputError
from simplicit.system import progress

FIRST, FIRST_PART = 4, 0.2
"""Sweeps begin with at most so many times the budget, and so large a part of N0."""

NOTABLE = 0.1
"""Part of the budget from which on kept weights are worth a line."""


def wanted(
    N0: int, sparsity: float, kept: Mapping[str, int], skipped: Mapping[str, int] | None = None
) -> int:
    """Say how many weights there are to spend.

    Args:
        N0: Non-zero weights of the explicit network.
        sparsity: Fraction of them to do without.
        kept: Weights of operations that are kept as they are: module path and operation -> number.
        skipped: Weights of layers that are skipped: module path -> number.

    Returns:
        The budget without these weights.

    Raises:
        InputError: If these weights alone are more than the budget.
    """
    budget, skipped = round((1 - sparsity) * N0), skipped or {}
    inside = sum(kept.values())
    fixed = inside + sum(skipped.values())
    if not fixed:
        return budget
    names, others = (
        ", ".join(f"{name} ({count:,})" for name, count in group.items() if count)
        for group in (kept, skipped)
    )
    most = max(0.0, 1 - fixed / N0)
    if fixed > budget:
        where = [f"{inside:,} are in operations that are kept as they are: {names}"] * bool(names)
        where += [f"{fixed - inside:,} are in skipped layers: {others}"] * bool(others)
        raise InputError(
            f"sparsity={sparsity:g}: the budget is {budget:,} of {N0:,} weights, but "
            f"{' and '.join(where)}; accepted is at most {most:.4g}"
        )
    if inside >= NOTABLE * budget and inside:
        progress.say(
            f"{inside:,} of the {budget:,} weights in the budget are in operations that cannot be "
            f"read as linear maps and stay as they are: {names}"
        )
    return budget - fixed


def first_budget(budget: int, N0: int) -> int:
    """Say how many weights sweeps begin with: half as many again as the budget, or more.

    Args:
        budget: Weights they end with.
        N0: Weights of the explicit network.

    Returns:
        Weights to begin with.
    """
    return min(FIRST * budget, max(int(FIRST_PART * N0), budget + budget // 2))


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

    A removal is never cheaper than those before it: the price of a weight is the largest cost so
    far.

    Args:
        costs: For each row the loss that each removal adds, the last weight's last.
        budget: Weights to keep in all rows together.

    Returns:
        Weights kept in each row; their sum is the budget, or all weights where it is larger.
    """
    lengths = [len(cost) for cost in costs]
    if not sum(lengths):
        return lengths
    prices = torch.cat([cost.cummax(0).values if len(cost) else cost for cost in costs])
    owner = torch.repeat_interleave(torch.arange(len(costs)), torch.tensor(lengths))
    # stable, and latest first, so that of equal prices in a row the later ones are kept
    ranked = prices.flip(0).argsort(descending=True, stable=True)
    kept = owner.flip(0)[ranked.cpu()[:budget]]
    return torch.bincount(kept, minlength=len(costs)).tolist()
