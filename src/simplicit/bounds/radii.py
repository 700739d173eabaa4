"""How far ahead of all others an output stays while the input moves: bounds, and radii from them.

The margin of class c against k is y_c − y_k = (C_c − C_k) x + (D_c − D_k) u + d_c − d_k. It is
bounded on boxes of x and u with the difference of the rows, not with the difference of two bounds.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.bounds.branches.search import lowest
from simplicit.bounds.intervals import LEAST, Box, Boxes, around
from simplicit.bounds.layer_boxes import boxes, prepared
from simplicit.bounds.linear_bounds import Substitution, refined
from simplicit.bounds.lipschitz import margin_lipschitz
from simplicit.bounds.mixed_monotone import Start, equilibrium_boxes, start
from simplicit.equations.network import StateEquations
from simplicit.equations.stacked import Stacked
from simplicit.errors import InputError
from simplicit.model.certificate import Certificate

Method = Literal["lipschitz", "interval", "mixed-monotone", "linear", "branches"]
METHODS: tuple[Method, ...] = get_args(Method)
"""From the loosest and cheapest to the tightest; without feedback intervals are mixed-monotone."""

PRECISION = 0.01
"""Relative precision of a radius."""

LARGEST = 1e6
"""Radii are not followed further."""

SMALLEST = 1e-6
"""A radius below is not told from 0."""

CHUNK = 128
"""Samples at a time: for 784 inputs and 100 rows their coefficients take 80 MB."""


STATES = 1 << 22
"""Most states, or pairs of outputs, of samples side by side: boxes of states take 64 MB."""


class Margins:
    """A network with some samples, and what is the same for all radii.

    Args:
        equations: In float64, without gradients.
        found: Certificate of its states, which are well-posed.
        u: Samples, flattened, float64.
        label: The class of each that is to stay ahead.
        bounds: Least and largest value of an input, or of each, or None; samples lie within.
        methods: Bounds to try; all that can help by default.

    Raises:
        InputError: On an unknown method.
    """

    def __init__(
        self,
        equations: StateEquations,
        found: Certificate,
        u: Float[Tensor, "m p"],
        label: Int[Tensor, " m"],
        bounds: tuple[Tensor, Tensor] | None = None,
        methods: Sequence[str] | None = None,
    ) -> None:
        # plain intervals are never tighter than mixed-monotone ones, and cost as much
        methods = ("lipschitz", "mixed-monotone", "linear") if methods is None else methods
        if unknown := set(methods) - set(METHODS):
            raise InputError(f"method {min(unknown)!r}: accepted are {', '.join(METHODS)}")
        if equations.feedback and "branches" in methods:
            raise InputError("method branches of a model with feedback: accepted are the others")
        known = _known(equations)
        plain: Method = "mixed-monotone" if "mixed-monotone" in known else "interval"
        methods = [plain if method == "mixed-monotone" else method for method in methods]
        self.methods: list[Method] = [method for method in METHODS if method in methods]
        self.layers, self.bounds = prepared(equations), bounds
        self.u, self.label = u, label
        self.chunk = max(1, min(CHUNK, STATES // max(equations.n, equations.q**2)))
        self.begin = start(self.layers[0], u, found) if equations.feedback else None
        self.reach = torch.zeros(len(u), dtype=u.dtype)
        if "lipschitz" in methods:
            every = torch.arange(len(u))
            still = torch.cat(
                [self._lower(self.reach[i], i, plain) for i in every.split(self.chunk)]
            )
            ratio = still / margin_lipschitz(self.layers, equations.p, found)[label]
            ratio = torch.where(still > 0, ratio.nan_to_num(torch.inf), 0.0)
            self.reach = ratio.scatter(1, label[:, None], torch.inf).amin(1) * (1 - 1e-12)

    def proved(self, eps: Float[Tensor, " s"], which: Int[Tensor, " s"]) -> Bool[Tensor, " s"]:
        """Say whether some samples keep their class within a radius.

        Args:
            eps: Radius of each.
            which: Their indices.

        Returns:
            True where a method proves it, the cheapest tried first.
        """
        done = torch.zeros_like(eps, dtype=torch.bool)
        for method in self.methods:
            if method == "lipschitz":
                done = eps <= self.reach[which]
                continue
            rest = (~done).nonzero()[:, 0]
            for part in rest.split(self.chunk) if len(rest) else ():
                done[part] = (self._lower(eps[part], which[part], method) > 0).all(1)
        return done

    # lower bounds of y_label − y_k for every k; infinite for the label itself
    def _lower(self, eps: Tensor, which: Tensor, method: Method) -> Float[Tensor, "s q"]:
        layers, u = self.layers, around(self.u[which], eps, self.bounds)
        if method == "branches":
            return self._on_branches(u, self.label[which])
        own = self.label[which][:, None]
        one = torch.eye(layers[-1].equation.size, dtype=u.low.dtype)
        found: Boxes | None = None
        if self.begin is not None:
            begin = Start(self.begin.u[which], self.begin.x[which], self.begin.resolvent)
            found = equilibrium_boxes(layers[0], u, begin, hold=method != "interval")
        if method == "linear":
            walked = refined(layers, u, found)
        else:
            walked = Substitution(layers, u, boxes(layers, u) if found is None else (found,))
        bound = walked.margins(one[own] - one, deep=method == "linear")
        return bound.scatter(1, own, torch.inf)

    # one sample after another: each has parts of its own
    def _on_branches(self, u: Box, label: Tensor) -> Float[Tensor, "s q"]:
        found = []
        for low, high, own in zip(u.low, u.high, label.tolist(), strict=True):
            margins = lowest(self.layers, Box(low[None], high[None]), own)
            found.append(torch.cat([margins[:own], margins.new_tensor([torch.inf]), margins[own:]]))
        return torch.stack(found)

    def radii(self, guess: float | Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Find the radius of each sample up to which its class provably stays ahead.

        Args:
            guess: Where the search begins, above 0, for all or for each; a radius is at least that
                exactly where `proved` says so there.

        Returns:
            Radii (m,), within `PRECISION` of where the proof ends; 0 where there is none.
        """
        m = len(self.u)
        low, high = self.u.new_zeros(m), self.u.new_full((m,), torch.inf)
        trial, active = self.u.new_zeros(m) + guess, torch.arange(m)
        while len(active):
            good = self.proved(trial[active], active)
            low[active[good]] = trial[active[good]]
            high[active[~good]] = trial[active[~good]]
            # double or quarter until there is a bracket, then halve its logarithm
            middle = torch.where(low == 0, trial / 4, (low * high).sqrt())
            trial = torch.where(high.isinf(), 2 * trial, middle)
            coarse = (high > low * (1 + PRECISION)) & (low < LARGEST)
            active = torch.where(low == 0, trial > SMALLEST, coarse).nonzero()[:, 0]
        return low


# with feedback the mixed-monotone refinement needs activations that are monotone
def _known(equations: StateEquations) -> Sequence[str]:
    if not equations.feedback:
        return METHODS
    phi = equations.hidden[0].phi
    names = [b.phi.name for b in phi.blocks] if isinstance(phi, Stacked) else [phi.name]
    return ("lipschitz", "interval", "linear") if set(names) & set(LEAST) else METHODS
