"""A cold start by homotopy in the penalty, for rows whose supports stay small.

Where all weights are zero the penalty is some factor above the one asked for. The factor is halved
until it is 1 (Osborne, Presnell & Turlach 2000, with many features a step), and at each level one
Newton round is done on the support and the features whose moment exceeds a price near the last
level's. With products that skip zeros a level costs as much as its supports, and nothing as large
as G is factorised. A row that needs many features, or whose features are so alike that many weights
change their sign, is left to ADMM.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from simplicit.convex.scaled import ScaledRows
from simplicit.solvers.methods import newton
from simplicit.solvers.settings import Settings


def descend(
    problem: ScaledRows, state: newton.NewtonState, most: Int[Tensor, " K"], settings: Settings
) -> tuple[newton.NewtonState, Bool[Tensor, " K"], Int[Tensor, " K"]]:
    """Go down from the level at which all weights are zero to the penalty itself.

    Args:
        problem: The rows, float64.
        state: All weights zero.
        most: Most rounds of each row, (K,).
        settings: How far apart levels are, and which rows are left.

    Returns:
        Weights near the solution, with rough moments; which rows got there; and the rounds done.
    """
    state, n, early = state.copy(), problem.R.shape[1], settings.early
    slope = problem.terms.slope()
    factor = (problem.R.abs() / slope).nan_to_num(0.0, 0.0).amax(1) if n else slope.sum(1)
    there, done, before = factor > 1, torch.zeros_like(most), torch.ones_like(most)
    while True:
        rows = (there & (factor > 1)).nonzero()[:, 0]
        if not len(rows):
            return state, there, done
        part, now, last = problem.rows(rows), state.rows(rows), factor[rows]
        factor[rows] = level = (last / settings.homotopy_step).clamp_min(1.0)
        price = part.times(last ** (1 - early) * level**early)
        active = (now.V != 0) | (newton.beyond(price, now) > 0)
        count = active.sum(1)
        growth = (count / before[rows]).clamp(1.0, 2.0)
        in_the_end = count * growth ** torch.log2(level)
        few = torch.maximum(count, in_the_end / 2) * settings.crowd <= n
        there[rows], before[rows] = few & (done < most)[rows], count
        keep = there[rows].nonzero()[:, 0]
        if not len(keep):
            continue
        rows, active, part = rows[keep], active[keep], part.rows(keep).times(level[keep])
        now = newton.on_support(part, now.rows(keep), active, part.rough_moments)
        state.put(rows, now)
        done[rows] += 1
        there[rows] = (now.flips - settings.slack) * settings.unsteady <= count[keep]
