"""What is kept of the row problems: one record a row, one a stage of a solve."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.convex.problem import RowProblem
from simplicit.convex.solution import Solution, Status
from simplicit.errors import InputError
from simplicit.solvers import Progress

Row = dict[str, Any]


def row_records(
    layer: str, problem: RowProblem, solution: Solution, W: Float[Tensor, "K N"]
) -> list[Row]:
    """Write down every row: the certificate of its convex solve, and what its weights are worth.

    Args:
        layer: Name of the rows' layer.
        problem: The rows.
        solution: What the solver found.
        W: The weights that are used.

    Returns:
        One record per row.

    Raises:
        InputError: If a row could not be solved for its numbers.
    """
    bad = {s for s in solution.status if s in (Status.NUMERICAL_ERROR, Status.INVALID_INPUT)}
    if bad:
        raise InputError(f"layer {layer}: {min(s.value for s in bad)}")
    bound, objective = solution.objective - solution.gap, problem.objective(W)
    t2 = problem.gram.t2
    reference = torch.sqrt(t2) if problem.loss == "root" else 0.5 * t2
    return [
        {
            "layer": layer,
            "row": k,
            "status": solution.status[k].name.lower(),
            "gap": float(solution.gap[k]),
            "relative_gap": float(solution.gap[k] / reference[k]) if reference[k] > 0 else 0.0,
            "objective": float(objective[k]),
            "bound": float(bound[k]),
            "nonzeros": int(torch.count_nonzero(W[k, ~problem.free])),
            "iterations": int(solution.iterations[k]),
        }
        for k in range(len(W))
    ]


SKIPPED, CHANNEL = "skipped", "channel"
"""Status of the rows of layers that stay as they are, and of the channels between the factors of a
layer: neither is a row problem."""

UNSOLVED = (SKIPPED, CHANNEL)
"""Status of what has no problem, hence no gap."""


def skipped_records(layer: str, nonzeros: Sequence[int]) -> list[Row]:
    """Write down the rows of a layer that stays as it is: there is no problem, hence no gap.

    Args:
        layer: Its name.
        nonzeros: Of each row.

    Returns:
        One record per row.
    """
    return _unsolved(layer, SKIPPED, 0, nonzeros)


def channel_records(layer: str, first: int, nonzeros: Sequence[int]) -> list[Row]:
    """Write down the channels that a layer's rows read: what they should be is given by no target.

    Args:
        layer: Its name.
        first: Number of the first channel, behind the rows.
        nonzeros: Of each channel.

    Returns:
        One record per channel.
    """
    return _unsolved(layer, CHANNEL, first, nonzeros)


def _unsolved(layer: str, status: str, first: int, nonzeros: Sequence[int]) -> list[Row]:
    nothing = dict.fromkeys(("gap", "relative_gap", "objective", "bound"), math.nan)
    return [
        {"layer": layer, "row": k, "status": status}
        | nothing
        | {"nonzeros": count, "iterations": 0}
        for k, count in enumerate(nonzeros, first)
    ]


def trace_records(layer: str, events: Sequence[tuple[float, Progress]]) -> Iterable[Row]:
    """Write down how the gaps fell.

    Args:
        layer: Name of the rows' layer.
        events: Seconds since the start, and what the solver said then.

    Yields:
        One record per event with a finite gap.
    """
    for seconds, event in events:
        finite = event.gap[torch.isfinite(event.gap)]
        if len(finite):
            yield {
                "layer": layer,
                "seconds": seconds,
                "iteration": event.iteration,
                "gap_median": float(finite.median()),
                "gap_max": float(finite.max()),
                "solved": event.solved,
            }
