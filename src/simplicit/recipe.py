"""What `implicitize` is asked for: objective, budget, structure, and how well to match."""

import re
from dataclasses import dataclass, fields, replace
from math import sqrt
from numbers import Real
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.ball import Constraint
from simplicit.convex.duality import Loss
from simplicit.convex.penalty import Penalty
from simplicit.errors import InputError
from simplicit.sparsity.choice import Method

SWEEPS = 9
"""Sweeps on the outputs of a network of matrices."""

PRESETS: dict[str, dict[str, Any]] = {
    "seed": {},
    "paper": {"structure": "full", "bias": False, "closed_loop": False},
    "acml2025": {
        "structure": "full",
        "bias": False,
        "closed_loop": False,
        "constraint": "row",
        "alpha": 0.0,
    },
}
"""What a named recipe sets."""


PATTERNS = ("weights", "channels")
"""Patterns that have a name; others are n:m."""


def n_of_m(pattern: str) -> tuple[int, int] | None:
    """Read a pattern n:m.

    Args:
        pattern: Any text.

    Returns:
        n and m; None unless 0 < n < m.
    """
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", pattern)
    n, m = map(int, found.groups()) if found else (0, 0)
    return (n, m) if n < m else None


@dataclass(frozen=True)
class Recipe:
    """Settings of the convex problems, validated at construction.

    Args:
        objective: `sparsity`: few weights. `robustness`: small row norms (the induced l∞ norm), or,
            with a level of `robustness`, a small norm of all paths from inputs to outputs.
        sparsity: Budget: 1 − non-zero weights / N0 of the explicit network, in [0, 1). The penalty
            level is then found on a path, and alpha and sparsity_ratio are not used.
        structure: `full`, `triangular`, `layered`, or `auto`: triangular, or layered where the
            network is not all matrices (then the only one there is).
        kappa: Bound κ in (0, 1) on ‖A‖∞,ω, which `full` needs, or on whole rows.
        constraint: What κ bounds: the `states` of a row of [A B], in `full` only, or the whole
            `row`, in any structure (see `constraint`).
        robustness: Accuracy, a fraction, that objective `robustness` may cost, as estimated on
            held-out calibration inputs; the strongest level that costs no more is taken (see
            `robustify`). It needs a budget met by chosen supports, and sweeps. None: the seed's
            formula with λ1, or the level that meets a budget.
        loss: Matching loss of the seed's objective `robustness`: `root`, as there, or `squared`.
        bias: Whether rows have a bias.
        support: Which weights a budget keeps. `splitting` chooses them by ADMM, all rows of a layer
            at once; `elimination` removes one after another where the loss of it is least, which
            takes the cube of a row's length; `relaxation` keeps those of the convex penalty, as
            the seed's objective `robustness` always does. `auto`: elimination in structure `full`,
            where a row reads states that follow from its own; splitting in the others.
        sweeps: Passes of sweeps on the outputs after a choice of supports, in which the budget is
            reached; 0 matches states alone, as do `full` and constraint `row`. None: `SWEEPS` for
            networks of matrices, 0 for others, where they have not paid (docs/method.md).
        relu_aware: Where a teacher's state is off, any pre-activation that leaves it off will do.
        sensitivity: Weigh rows by how much the teacher's outputs depend on them.
        closed_loop: Match each layer on the states of the model built so far, so that errors do
            not accumulate; in `full`, the outputs on the model's own equilibrium.
        alpha: Weight of the penalty, as in the seed: α Σ s + λ1 ‖r‖².
        lambda1: Weight of the matching loss.
        sparsity_ratio: Percentage of the smallest weights pruned after the solve, in [0, 100).
        l0: Share of the perspective penalty under a budget: price of a non-zero relative to l1 = 1.
        l2: Its curvature, > 0 where l0 is.
        tol: Accepted relative duality gap of a row.
        skip: Layers that stay as they are: glob patterns of module paths (`fc`, `layer4.*`). Their
            weights count against the budget. A weight that other layers share is skipped there,
            too.
        pattern: Which weights may be zero: single `weights`, or `n:m`, e.g. `2:4`. Then of every m
            neighbouring input channels at one place of the kernel at most n stay in each row.
            Without a sparsity each layer keeps n/m of its weights; a larger sparsity holds as well.
            A weight that equations share has the pattern where it is used first. `channels`: whole
            neurons and channels go, and the model is smaller and dense; for one of sparsity, flops
            and speedup.
        rank: Layers by two factors: each of at most this rank, with single weights beside them
            under a sparsity; `auto`: the ranks that meet the sparsity. In structure `full` A is of
            at most this rank, by the nuclear norm, and stored whole. None: any rank.
        flops: Budget of `channels`: the fraction of the multiply-adds to do without, in (0, 1).
        speedup: Budget of `channels`: how many times faster torch's own modules are to be than
            those of the network, by the clock of this machine.
        blocks: (r, c): r neighbouring rows × c neighbouring input channels at one place of the
            kernel are zero together, or not. Blocks at the end may be smaller.

    Raises:
        InputError: On an impossible value.
    """

    objective: Literal["sparsity", "robustness"] = "sparsity"
    sparsity: float | None = None
    structure: Literal["auto", "full", "triangular", "layered"] = "auto"
    kappa: float = 0.99
    constraint: Constraint = "states"
    robustness: float | None = None
    loss: Loss = "root"
    bias: bool = True
    support: Literal["auto", "splitting", "elimination", "relaxation"] = "auto"
    sweeps: int | None = None
    relu_aware: bool = True
    sensitivity: bool = True
    closed_loop: bool = True
    alpha: float = 1e-2
    lambda1: float = 0.1
    sparsity_ratio: float = 0.0
    l0: float = 0.2
    l2: float = 0.2
    tol: float = 1e-4
    skip: tuple[str, ...] = ()
    rank: int | Literal["auto"] | None = None
    flops: float | None = None
    speedup: float | None = None
    pattern: str = "weights"
    blocks: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        def check(good: bool, name: str, accepted: str) -> None:
            if not good:
                raise InputError(f"{name}={getattr(self, name)!r}: accepted is {accepted}")

        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in (float, float | None) and (value is not None or field.type is float):
                check(isinstance(value, Real), field.name, "a number")
        check(self.objective in ("sparsity", "robustness"), "objective", "sparsity or robustness")
        check(
            self.structure in ("auto", "full", "triangular", "layered"),
            "structure",
            "auto, full, triangular or layered",
        )
        check(self.constraint in ("states", "row"), "constraint", "states or row")
        check(
            self.support in ("auto", "splitting", "elimination", "relaxation"),
            "support",
            "auto, splitting, elimination or relaxation",
        )
        enough = self.sweeps is None or (
            isinstance(self.sweeps, int) and (self.sweeps == 0 or self.sweeps >= 4)
        )
        check(enough, "sweeps", "None, 0, or a whole number, at least 4")
        check(self.sparsity is None or 0 <= self.sparsity < 1, "sparsity", "None or [0, 1)")
        check(0 < self.kappa < 1, "kappa", "a number above 0 and below 1")
        check(0 <= self.alpha < float("inf"), "alpha", "a finite number, at least 0")
        check(0 < self.lambda1 < float("inf"), "lambda1", "a finite number above 0")
        check(0 <= self.sparsity_ratio < 100, "sparsity_ratio", "a percentage in [0, 100)")
        check(0 < self.tol < 1, "tol", "a number above 0 and below 1")
        several = isinstance(self.skip, tuple) and all(isinstance(p, str) for p in self.skip)
        check(several, "skip", "a list of patterns")
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool) and self.rank >= 1
        check(
            whole or self.rank in (None, "auto"),
            "rank",
            "None, auto, or a whole number, at least 1",
        )
        check(
            self.rank != "auto" or self.sparsity is not None,
            "rank",
            "None or a whole number, unless there is a sparsity",
        )
        named = isinstance(self.pattern, str) and (self.pattern in PATTERNS or self.n_of_m)
        check(bool(named), "pattern", f"{', '.join(PATTERNS)}, or n:m with 0 < n < m, e.g. '2:4'")
        pair = self.blocks is None or (
            isinstance(self.blocks, tuple)
            and len(self.blocks) == 2
            and all(isinstance(n, int) and n > 0 for n in self.blocks)
            and self.blocks != (1, 1)
        )
        check(pair, "blocks", "None, or two whole numbers, at least 1 and not both 1, e.g. (4, 1)")
        alone = self.blocks is None or self.pattern == "weights"
        check(alone, "blocks", f"None with pattern {self.pattern}")
        check(self.flops is None or 0 < self.flops < 1, "flops", "None, or above 0 and below 1")
        check(
            self.speedup is None or 1 < self.speedup < float("inf"),
            "speedup",
            "None, or a number above 1",
        )
        asked = [n for n in ("sparsity", "flops", "speedup") if getattr(self, n) is not None]
        check(
            not self.units or len(asked) == 1,
            "pattern",
            "channels with one of sparsity, flops and speedup, and not more",
        )
        check(
            not self.units or self.structure in ("auto", "layered"),
            "structure",
            "auto or layered with pattern channels",
        )
        for name in asked:
            check(self.units or name == "sparsity", name, "None, unless pattern is channels")
        alone = self.rank is None or (self.pattern == "weights" and self.blocks is None)
        check(alone, "rank", "None with a pattern or blocks")
        check(self.loss in ("root", "squared"), "loss", "root or squared")
        if self.robustness is not None:
            check(0 < self.robustness < 1, "robustness", "None, or a number above 0 and below 1")
            check(
                self.objective == "robustness" and self.chooses and self._free,
                "robustness",
                "None, unless objective is robustness, with a sparsity, supports that are chosen "
                "(any but relaxation), and structure triangular or layered",
            )

    def with_preset(self, preset: str | None) -> "Recipe":
        """Apply a named recipe.

        Both are documented reconstructions: neither paper publishes all of its settings. States
        are matched as they are, without biases, with a full A.

        `seed` is the first release: its formulas for both objectives, and no level of robustness.
        `paper` is SIM (arXiv 2209.09389): the row constraint ‖A‖∞,ω ≤ κ, with ω that makes the
        teacher feasible (the papers rescale the teacher instead, which is the same for ReLU), and
        the seed's α and λ1. `acml2025` is its successor (Tsai, Gao, El Ghaoui, PMLR v260): the
        least-squares loss alone, every row of [A B] in an l1 ball of radius κ, relative to the
        teacher's own row; C and D by least squares. That paper finds the ball's multiplier by
        bisection; the solver here does so by Newton, with the same result.

        Args:
            preset: `seed`, `paper`, `acml2025` or None.

        Returns:
            The recipe.

        Raises:
            InputError: On an unknown name.
        """
        if preset is None:
            return self
        if preset not in PRESETS:
            raise InputError(f"preset {preset!r}: accepted are {', '.join(PRESETS)}")
        if self.rank is not None:
            raise InputError(f"rank={self.rank!r}: accepted is None with preset {preset!r}")
        settings = dict(PRESETS[preset])
        if self.budgeted:
            settings.pop("alpha", None)  # a budget takes its place
        return replace(self, **settings)

    @property
    def method(self) -> Method:
        """How supports are chosen, where they are."""
        exact = self.support == "auto" and self.structure == "full"
        return "elimination" if exact or self.support == "elimination" else "splitting"

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """How many of how many neighbours stay; None with another pattern."""
        return n_of_m(self.pattern)

    @property
    def units(self) -> bool:
        """Whether whole units go, and no single weights."""
        return self.pattern == "channels"

    @property
    def budgeted(self) -> bool:
        """Whether a budget is met: a sparsity, n:m, or one of units."""
        return self.sparsity is not None or self.n_of_m is not None or self.units

    @property
    def chooses(self) -> bool:
        """Whether a budget is met by choosing supports, and not by a penalty."""
        few = self.budgeted or self.rank is not None
        chosen = self.support != "relaxation" and few
        return chosen and (self.objective == "sparsity" or self.robustness is not None)

    @property
    def both(self) -> bool:
        """Whether there are single weights beside factors."""
        return self.sparsity is not None and self.rank not in (None, "auto")

    @property
    def _free(self) -> bool:
        return self.structure != "full" and self.constraint != "row"

    def passes(self, matrices: bool, structure: str) -> int:
        """Say how many sweeps on the outputs there are.

        Args:
            matrices: Whether the network is all matrices.
            structure: The structure that is solved.

        Returns:
            Their number; 0 with feedback, or with a ball to stay in.
        """
        if not self.chooses or structure == "full" or self.constraint == "row":
            return 0
        if self.rank is not None:
            return 0
        return (SWEEPS if matrices else 0) if self.sweeps is None else self.sweeps

    def require_heard(self, matrices: bool, structure: str) -> None:
        """Refuse every option that would change nothing.

        Args:
            matrices: Whether the network is all matrices.
            structure: The structure that is solved.

        Raises:
            InputError: Naming the option, and where it would be heard.
        """
        for name, reason in self.unheard(matrices, structure).items():
            raise InputError(f"{name}={getattr(self, name)!r}: {reason}")

    def unheard(self, matrices: bool, structure: str) -> dict[str, str]:
        """List the options that were changed and would change nothing.

        Args:
            matrices: Whether the network is all matrices.
            structure: The structure that is solved.

        Returns:
            Name of the option -> where it would be heard.
        """
        other = "for a network with convolutions, tokens or kept operations, "
        bounded = structure == "full" or self.constraint == "row"
        budget, factors = self.budgeted, self.rank is not None
        seed_sparsity = not budget and not factors and self.objective == "sparsity"
        relaxed = budget and self.objective == "sparsity" and self.support == "relaxation"
        chosen = "accepted with a sparsity or a rank, and any support but relaxation"
        rules = {
            "structure": (
                matrices or structure == "layered",
                other + "accepted are layered and auto",
            ),
            "constraint": (matrices, other + "accepted is states"),
            "kappa": (
                bounded,
                "there is no ball to bound in structure triangular or layered; accepted is kappa "
                "with structure full or constraint row",
            ),
            "loss": (
                self._small_rows,
                "it is the loss of objective robustness without a level; accepted there",
            ),
            "support": (
                budget
                and not self._small_rows
                and self.rank != "auto"
                and (not self.units or self.support == "relaxation"),
                "rank auto and pattern channels choose no single weights, and objective "
                "robustness without a level has one "
                "way to choose supports; accepted with a sparsity, and objective sparsity or a "
                "level of robustness",
            ),
            "rank": (
                self.constraint == "states"
                and self.objective == "sparsity"
                and self.support != "relaxation"
                and (structure != "full" or not budget),
                "accepted with objective sparsity, constraint states, and any support but "
                "relaxation; in structure full, where A is stored whole and a rank saves no "
                "weights, a whole number without a sparsity",
            ),
            "sweeps": (
                not self.sweeps or (self.chooses and not bounded and not factors),
                "sweeps follow a choice of supports in structure triangular or layered; accepted "
                "with a sparsity, any support but relaxation, no ball, and no rank",
            ),
            "relu_aware": (self.chooses, chosen),
            "sensitivity": (self.chooses, chosen),
            "skip": (
                structure != "full",
                "in structure full all hidden layers are one equation; accepted with structure "
                "triangular or layered",
            ),
            "alpha": (
                seed_sparsity,
                "it is the penalty's weight of objective sparsity without a budget or a rank; "
                "accepted there",
            ),
            "lambda1": (
                seed_sparsity or (self._small_rows and not budget),
                "it is the loss's weight in the first release's formulas, which a sparsity, a "
                "level of robustness or a rank takes the place of; accepted without them, or with "
                "preset 'seed'",
            ),
            "sparsity_ratio": (
                not budget and not factors,
                "a sparsity or a rank takes its place; accepted without one",
            ),
            "l0": (relaxed, "accepted with a sparsity and support relaxation"),
            "l2": (relaxed, "accepted with a sparsity and support relaxation"),
            "pattern": (
                self.chooses and not bounded and (self.objective == "sparsity" or not self.units),
                "patterns are held by a choice of supports; accepted with structure triangular or "
                "layered, constraint states, any support but relaxation, and objective sparsity "
                "or, for n:m, a level of robustness",
            ),
            "blocks": (
                self.chooses and not bounded and self.objective == "sparsity",
                "blocks are held by a choice of supports; accepted with a sparsity, objective "
                "sparsity, structure triangular or layered, constraint states, and any support but "
                "relaxation",
            ),
        }
        changed = {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        return {
            name: reason for name, (heard, reason) in rules.items() if not heard and name in changed
        }

    @property
    def matching_loss(self) -> Loss:
        """The matching loss of the rows."""
        return self.loss if self._small_rows else "squared"

    @property
    def _small_rows(self) -> bool:
        return self.objective == "robustness" and self.robustness is None

    def penalty(self, m: int, scales: Float[Tensor, " columns"], ones: Tensor) -> Penalty:
        """Write the penalty of the rows, at level 1 under a budget.

        The seed minimises α Σ w² + λ1 ‖r‖² (sparsity) and ‖w‖₁ + λ1 ‖r‖ (robustness) over m
        samples; in this project's units that is l2 = α/(m λ1), and l1 = 1/(λ1 √m). With the
        squared loss, ‖w‖₁ + λ1 ‖r‖², it is l1 = 1/(2 m λ1).

        Args:
            m: Number of samples.
            scales: ρ of each column, for objective `sparsity` under a budget.
            ones: 1 for each column, 0 for the bias; the seed's penalties see raw weights.

        Returns:
            The penalty.
        """
        if self._small_rows:
            weight = sqrt(m) if self.loss == "root" else 2 * m
            level = 1.0 if self.sparsity is not None else 1 / (self.lambda1 * weight)
            return Penalty(l1=level, scales=ones)
        if not self.budgeted and self.rank is None:
            return Penalty(l2=self.alpha / (m * self.lambda1), scales=ones)
        return Penalty(l0=self.l0, l1=1.0, l2=self.l2, scales=scales)
