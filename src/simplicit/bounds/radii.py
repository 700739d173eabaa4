"""How far ahead of all others an output stays while the input moves: bounds, and radii from them.

The margin of class c against k is y_c − y_k = (C_c − C_k) x + (D_c − D_k) u + d_c − d_k. It is
bounded on boxes of x and u with the difference of the rows, not with the difference of two bounds.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.bounds import layer_boxes
from simplicit.bounds.intervals import LEAST, affine, around, propagate
from simplicit.bounds.linear_bounds import substitution
from simplicit.bounds.lipschitz import margin_lipschitz
from simplicit.bounds.mixed_monotone import equilibrium_boxes, start
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel

Method = Literal["lipschitz", "interval", "mixed-monotone", "linear"]
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
"""Most states of samples side by side: their boxes take 64 MB."""


class Margins:
    """A model with some samples, and what is the same for all radii.

    Args:
        model: In float64, well-posed.
        u: Samples, flattened, float64.
        label: The class of each that is to stay ahead.
        bounds: Least and largest value of an input, or None; samples lie within.
        methods: Bounds to try; all that can help by default.

    Raises:
        InputError: On an unknown method.
    """

    def __init__(
        self,
        model: ImplicitModel,
        u: Float[Tensor, "m p"],
        label: Int[Tensor, " m"],
        bounds: tuple[float, float] | None = None,
        methods: Sequence[str] | None = None,
    ) -> None:
        full = model.structure == "full"
        # plain intervals are never tighter than mixed-monotone ones, and cost as much
        methods = ("lipschitz", "mixed-monotone", "linear") if methods is None else methods
        if unknown := set(methods) - set(METHODS):
            raise InputError(f"method {min(unknown)!r}: accepted are {', '.join(METHODS)}")
        known = _known(model)
        boxes: Method = "mixed-monotone" if "mixed-monotone" in known else "interval"
        methods = [boxes if method == "mixed-monotone" else method for method in methods]
        methods = [method for method in methods if method in known]
        self.chunk = max(1, min(CHUNK, STATES // model.n))
        self.model, self.u, self.label, self.bounds = model, u, label, bounds
        self.methods: list[Method] = [method for method in METHODS if method in methods]
        self.begin = start(model, u) if full else None
        self.reach = torch.zeros(len(u), dtype=u.dtype)
        if "lipschitz" in methods:
            every = torch.arange(len(u))
            still = torch.cat(
                [self._lower(self.reach[i], i, boxes) for i in every.split(self.chunk)]
            )
            ratio = still / margin_lipschitz(model)[label]
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
            for part in rest.split(self.chunk):
                done[part] = (self._lower(eps[part], which[part], method) > 0).all(1)
        return done

    # lower bounds of y_label − y_k for every k; infinite for the label itself
    def _lower(self, eps: Tensor, which: Tensor, method: Method) -> Float[Tensor, "s q"]:
        model, u, label = self.model, around(self.u[which], eps, self.bounds), self.label[which]
        if model.equations is not None:
            return layer_boxes.margins(model.equations, u, label)
        if self.begin is not None:
            begin = self.begin.rows(which)
            boxes = equilibrium_boxes(model, u, begin, hold=method != "interval")
        else:
            b = None if model.b is None else model.b.detach()
            boxes = propagate(model.A.detach(), model.B.detach(), b, model.blocks, u)
        whole = substitution(model, u, boxes).refined() if method == "linear" else None
        C, D = model.C.detach(), model.D.detach()
        d = C.new_zeros(len(C)) if model.d is None else model.d.detach()
        bound = torch.empty(len(label), len(C), dtype=C.dtype)
        for k in label.unique().tolist():
            mine = (label == k).nonzero()[:, 0]
            c, e, apart = C[k] - C, D[k] - D, d[k] - d
            if whole is not None:
                found = whole.rows(mine).lower(c, e, apart)
            else:
                both = boxes.x.rows(mine).beside(u.rows(mine))
                found = affine(torch.cat([c, e], 1), both, apart).low
            found[:, k] = torch.inf
            bound[mine] = found
        return bound

    def radii(self, guess: float) -> Float[Tensor, " m"]:
        """Find the radius of each sample up to which its class provably stays ahead.

        Args:
            guess: Where the search begins, above 0; a radius is at least that exactly where
                `proved` says so there.

        Returns:
            Radii (m,), within `PRECISION` of where the proof ends; 0 where there is none.
        """
        m = len(self.u)
        low, high = self.u.new_zeros(m), self.u.new_full((m,), torch.inf)
        trial, active = self.u.new_full((m,), guess), torch.arange(m)
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


# networks of other maps than matrices have boxes only, and with feedback the mixed-monotone
# refinement needs activations that are monotone
def _known(model: ImplicitModel) -> Sequence[str]:
    if model.equations is not None:
        return ("interval", "mixed-monotone")
    turns = any(block.phi.name in LEAST for block in model.blocks)
    if model.structure == "full" and turns:
        return ("lipschitz", "interval", "linear")
    return METHODS
