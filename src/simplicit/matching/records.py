"""What is kept of the row problems: one record a row, one a stage of a solve; weights by layer."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.rows import Rows
from simplicit.calibration.skipped import Layer, Place, weights
from simplicit.convex.problem import RowProblem
from simplicit.convex.solution import Solution, Status
from simplicit.equations.equation import Equation
from simplicit.errors import InputError
from simplicit.model.factored import Factors
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


class Ledger:
    """The records of one matching.

    Args:
        layers: Its rows.
        skipped: Weights that stay as they are.

    Attributes:
        layers: The rows; others where units have gone.
        rows: One record per row problem, in the order in which layers are matched.
        trace: Relative gaps against time.
        budgets: How many weights each layer has after each stage.
    """

    def __init__(self, layers: Sequence[Rows], skipped: dict[Place, Layer]) -> None:
        self.layers, self._skipped = layers, skipped
        self.rows: list[Row] = []
        self.trace: list[Row] = []
        self.budgets: list[Row] = []

    def count(
        self,
        stage: str,
        equations: Sequence[Equation],
        factors: Mapping[int, Factors] | None = None,
    ) -> None:
        """Write down how many weights each layer has.

        Args:
            stage: The stage that has ended.
            equations: The equations after it.
            factors: Of layers that are written by some, by their number; in the equations these
                are multiplied out.
        """
        counts = [int(r.weights(equations[r.index]).count_nonzero()) for r in self.layers]
        for k, own in (factors or {}).items():
            counts[k] = sum(map(sum, own.nonzeros))
        self.note(stage, counts)

    def note(self, stage: str, counts: Sequence[int]) -> None:
        """Write down how many weights each layer has, those that stay as they are among them.

        Args:
            stage: The stage that has ended.
            counts: Weights of the rows of each layer.
        """
        noted = [(r.index, r.name, n) for r, n in zip(self.layers, counts, strict=True)]
        first = {layer.name: layer.index for layer in reversed(self._skipped.values())}
        noted += [(first[name], name, n) for name, n in weights(self._skipped).items()]
        for _, layer, n in sorted(noted, key=lambda one: one[0]):
            self.budgets.append({"stage": stage, "layer": layer, "weights": n})

    def since(self, stage: str) -> list[Row]:
        """Look up the weights of a stage and of those behind it.

        Args:
            stage: The stage.

        Returns:
            Their records.
        """
        first = next(k for k, row in enumerate(self.budgets) if row["stage"] == stage)
        return self.budgets[first:]

    def recount(self, equations: Sequence[Equation]) -> None:
        """Write into the rows' records how many weights they have now.

        Args:
            equations: The equations.
        """
        every = [r.weights(equations[r.index]).count_nonzero(2).flatten() for r in self.layers]
        for row, count in zip(self.rows, torch.cat(every).tolist(), strict=True):
            row["nonzeros"] = count

    @property
    def every(self) -> list[Row]:
        """One record per row, layer by layer, rows that stay as they are included."""
        place: dict[str, int] = {rows.name: rows.index for rows in self.layers}
        counts: dict[str, Tensor] = {}
        for layer in self._skipped.values():
            own = layer.weight.flatten(1).count_nonzero(1)
            counts[layer.name] = counts[layer.name] + own if layer.name in counts else own
            place.setdefault(layer.name, layer.index)
        found = [*self.rows]
        for name, own in counts.items():
            found += skipped_records(name, own.tolist())
        return sorted(found, key=lambda row: place[row["layer"]])
