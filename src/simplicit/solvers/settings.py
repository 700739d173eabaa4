"""How the solver goes about it: one number each, where it comes from, and what may be chosen.

No setting changes what is solved or how it is certified; they change how long it takes.
"""

from dataclasses import dataclass

import torch

from simplicit.errors import InputError
from simplicit.solvers.methods.admm import Admm
from simplicit.solvers.methods.first_order import Method


@dataclass(frozen=True)
class Settings:
    """Numbers of the solver's stages. "Chosen" are those that no measurement was made for.

    Attributes:
        tile: Rows solved together. Chosen: two blocks of `convex.products.BLOCK`.
        methods: First-order methods, one after the other. Float32 first, as
            it is faster; float64 takes over rows that float32 could not bring near their support.
        first_steps: First-order steps before the first hand-over to Newton; half as many after a
            warm start. Chosen; they double from one hand-over to the next.
        most_steps: First-order steps between two hand-overs at the most. Chosen.
        newton_rounds: Newton rounds before a row that does not close its gap goes back to the
            first-order method. From a good start a few suffice, so more seldom help. 0 leaves
            Newton, and coordinate descent, out.
        careful_rounds: Newton rounds that end at the first change of a sign, after the second
            hand-over; as the steps, they double from one to the next. A rooted row of rank 20
            among 80 features took 200, three a feature (`tests/degenerate_suite.py`).
        root_steps: First-order steps between two hand-overs at the most for rows of the rooted
            loss; what is left after them is solved by bisection of σ. Chosen.
        most_sigmas: Squared problems solved for one σ. Every other one halves the bracket on a
            logarithmic scale, so 60 bring it from 1e-6 … 1 to rounding.
        near: Relative gap below which a warm start goes to Newton at once, where coordinate descent
            is left out. Chosen.
        descent: Work of coordinate descent on a row before it is left, in multiplications for each
            entry of the Gram; 0 leaves it out. Chosen, as the next three, on the problems of
            `benchmarks/solver`.
        handover: Change of a weight, in units of its target, below which coordinate descent hands a
            row over to Newton.
        descents: How often coordinate descent begins at the most: each time from exact moments, on
            rows that are not finished.
        finer: Part of the last time's change of a weight at which it then ends.
        large: Features from which rows are solved by working sets. Chosen: there the inverses
            for two ρ take 2 GB.
        first_set: Features of the first working set. Chosen.
        share: A row whose working set would exceed one feature in so many is left to the whole
            Gram. Chosen.
        stays: Rounds with working sets of one size before it doubles in any case. Chosen.
        inner: Tolerance on a working set, in that of the row: below 1, so that the gap on the set
            leaves room for that of the features outside. Chosen.

    Raises:
        InputError: If a value is none that the solver can use.
    """

    tile: int = 64
    methods: tuple[Method, ...] = (Admm(), Admm(dtype=torch.float64))
    first_steps: int = 32
    most_steps: int = 256
    newton_rounds: int = 12
    careful_rounds: int = 60
    root_steps: int = 64
    most_sigmas: int = 60
    near: float = 1e-2
    descent: float = 8.0
    handover: float = 1e-3
    descents: int = 3
    finer: float = 3e-3
    large: int = 8000
    first_set: int = 256
    share: int = 4
    stays: int = 3
    inner: float = 0.3

    def __post_init__(self) -> None:
        if not self.methods:
            raise InputError("settings: methods is empty; name at least one first-order method")
        for name in ("tile", "first_set", "share"):
            _check(name, getattr(self, name), 1)
        # half of the first steps are done after a warm start
        _check("first_steps", self.first_steps, 2)
        for name in ("most_steps", "root_steps"):
            _check(name, getattr(self, name), self.first_steps)
        for name in (
            "newton_rounds", "careful_rounds", "most_sigmas", "descent", "handover", "descents",
            "finer", "large", "stays", "near",
        ):  # fmt: skip
            _check(name, getattr(self, name), 0)
        if not 0 < self.inner <= 1:
            raise InputError(f"settings: inner={self.inner}; must be above 0 and at most 1")


def _check(name: str, value: int | float, least: int) -> None:
    if not least <= value < float("inf"):
        raise InputError(f"settings: {name}={value}; must be at least {least}")


DEFAULTS = Settings()
