"""A solver's answer: weights, certificates and one status per row."""

from dataclasses import dataclass, fields, replace
from enum import Enum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Status(Enum):
    """Why a row's solver stopped, and what to do next."""

    SOLVED = "The duality gap is at most the tolerance: the row is optimal to that accuracy."
    SOLVED_INACCURATE = (
        "The gap is within 100 tolerances: usable, but raise max_iterations for full accuracy."
    )
    MAX_ITERATIONS = (
        "The iterations ran out: the weights are feasible and the gap is honest; raise "
        "max_iterations or loosen tol."
    )
    TIME_LIMIT = (
        "The time ran out: the weights are feasible and the gap is honest; raise time_limit."
    )
    INTERRUPTED = (
        "The callback asked to stop: pass this solution as warm_start to the same call to go on."
    )
    NUMERICAL_ERROR = (
        "Not-a-number or overflow arose inside: rescale the data; the last finite weights are kept."
    )
    INVALID_INPUT = "The row's own data are not finite: mend its target, penalty or radius."
    UNSOLVED = "The row was not started."


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights of K rows over N features with a float64 certificate each.

    Attributes:
        W: Weights, (K, N); exact zeros off the support, inside the ball.
        gap: Duality gap of W on the unscaled problem, absolute, float64, (K,).
        objective: Objective of W, (K,); `objective - gap` is a lower bound on the optimum.
        multiplier: Multiplier μ of the ball, (K,); 0 where it is slack.
        status: One `Status` per row.
        iterations: Solver iterations (first-order steps and Newton rounds) per row, (K,).
    """

    W: Float[Tensor, "K N"]
    gap: Float[Tensor, "K"]
    objective: Float[Tensor, "K"]
    multiplier: Float[Tensor, "K"]
    status: tuple[Status, ...]
    iterations: Int[Tensor, "K"]

    @property
    def solved(self) -> Bool[Tensor, "K"]:
        """Rows whose status is SOLVED, (K,)."""
        return torch.tensor([s is Status.SOLVED for s in self.status], dtype=torch.bool)

    @property
    def nonzeros(self) -> Int[Tensor, "K"]:
        """Non-zero weights of each row, (K,)."""
        return torch.count_nonzero(self.W, dim=1)

    def rows(self, index: Int[Tensor, " k"]) -> "Solution":
        """Keep some rows, in a given order.

        Args:
            index: Which rows, (k,).

        Returns:
            Their part of the solution.
        """
        tensors = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "status"}
        return replace(self, status=tuple(self.status[k] for k in index.tolist()), **tensors)

    @staticmethod
    def concatenate(parts: "list[Solution]") -> "Solution":
        """Join solutions of consecutive rows.

        Args:
            parts: Solutions over the same features.

        Returns:
            One solution of all rows.
        """
        tensors = {
            f.name: torch.cat([getattr(part, f.name) for part in parts])
            for f in fields(Solution)
            if f.name != "status"
        }
        return Solution(status=sum((part.status for part in parts), ()), **tensors)
