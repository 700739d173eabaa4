"""Solvers of `RowProblem`: one algorithm a file, one loop."""

from .loop import Callback, Progress, solve

__all__ = ["Callback", "Progress", "solve"]
