"""Solvers of `RowProblem`: one algorithm a file, one loop."""

from simplicit.solvers.loop import Callback, Progress, solve

__all__ = ["Callback", "Progress", "solve"]
