"""Bounds on linear functions of the outputs by substituting backward: CROWN, also for feedback.

Every state lies between two lines in its pre-activation (`relaxation`). For any multipliers λ, with
μ = λ · (slope of the line that λ's sign calls for) and β its offset,

    λ x ≥ μ z + λ β = μ (A x + B u + b) + λ β,    so

    c x + e u ≥ (c + μ A − λ) x + (e + μ B) u + μ b + λ β.

The best λ makes the first bracket zero. Without feedback that takes one pass from the last layer to
the first: CROWN (Zhang et al., NeurIPS 2018) or DeepPoly (Singh et al., POPL 2019). With feedback λ
is a fixed point and the pass is repeated; what is left of the bracket, and what rounding leaves of
it, is bounded on the box of x. So the bound is sound whatever λ the passes end with.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.bounds.intervals import TINY, Box, Layers, images, slack
from simplicit.bounds.relaxation import Lines, lines
from simplicit.model.implicit import ImplicitModel

PASSES = 40
"""Substitutions with feedback: each leaves at most κ of the bracket before it."""


@dataclass(frozen=True, eq=False)
class Substitution:
    """A model with boxes of its inputs, pre-activations and states, and lines around φ.

    Args:
        model: In float64.
        u: Boxes of inputs.
        z: Boxes of pre-activations.
        x: Boxes of states.
        around: Lines that hold φ over `z`.
    """

    model: ImplicitModel
    u: Box
    z: Box
    x: Box
    around: Lines

    def rows(self, which: Int[Tensor, " s"]) -> "Substitution":
        """Take some samples.

        Returns:
            The same for them.
        """
        u, z, x = (box.rows(which) for box in (self.u, self.z, self.x))
        return Substitution(self.model, u, z, x, Lines(*(t[which] for t in self.around)))

    def lower(
        self, c: Float[Tensor, "k n"], e: Float[Tensor, "k p"], d: Float[Tensor, "k"]
    ) -> Float[Tensor, "m k"]:
        """Bound c x + e u + d from below over every sample's box.

        Args:
            c: Coefficients of the states, one function a row.
            e: Of the inputs.
            d: Constants.

        Returns:
            A lower bound for each sample and function.
        """
        model, lines = self.model, self.around
        A, B = model.A.detach(), model.B.detach()
        b = torch.zeros_like(A[0]) if model.b is None else model.b.detach()
        if model.structure == "full":
            lam, mu = self._passes(c)
        else:
            lam, mu = self._substitute(c)
        beta = torch.where(lam >= 0, lines.below[:, None], lines.above[:, None])
        gain = (mu.flatten(0, 1) @ B).unflatten(0, mu.shape[:2]) + e
        constant = mu @ b + (lam * beta).sum(2) + d
        over = _least(gain, self.u)
        if model.structure == "full":
            left = (mu.flatten(0, 1) @ A).unflatten(0, mu.shape[:2]) + c - lam
            over = over + _least(left, self.x)
        # every product above, and the roundings of λ and μ, are bounded by these sizes
        x, u, z = self.x.size, self.u.size, self.z.size
        through = x @ A.abs().T + u @ B.abs().T + b.abs() + z
        offsets = torch.maximum(lines.below.abs(), lines.above.abs()) + x
        size = (
            torch.einsum("mkn,mn->mk", mu.abs(), through)
            + torch.einsum("mkn,mn->mk", lam.abs(), offsets)
            + x @ c.abs().T
            + u @ e.abs().T
            + d.abs()
        )
        return over + constant - 2 * slack(model.n + model.p) * size - TINY

    def refined(self) -> "Substitution":
        """Bound the pre-activations by substitution, where that is tighter than their box.

        Without feedback layer by layer, first layer first, each with the lines found before it.

        Returns:
            The same with smaller boxes.
        """
        model, now = self.model, self
        A, B = model.A.detach(), model.B.detach()
        b = torch.zeros_like(A[0]) if model.b is None else model.b.detach()
        stops = torch.tensor([block.size for block in model.blocks]).cumsum(0).tolist()
        parts = [
            slice(stop - block.size, stop) for block, stop in zip(model.blocks, stops, strict=True)
        ]
        # the first layer reads inputs alone: its box is exact
        for rows in [slice(0, model.n)] if model.structure == "full" else reversed(parts[:-1]):
            low = now.lower(A[rows], B[rows], b[rows])
            high = -now.lower(-A[rows], -B[rows], -b[rows])
            z = Box(now.z.low.clone(), now.z.high.clone())
            z.low[:, rows] = torch.maximum(z.low[:, rows], low)
            z.high[:, rows] = torch.minimum(z.high[:, rows], high)
            now = substitution(model, self.u, Layers(z, now.x.meet(images(model.blocks, z))))
        return now

    # λ and μ in one pass, last layer first
    def _substitute(self, c: Tensor) -> tuple[Tensor, Tensor]:
        A, stop = self.model.A.detach(), 0
        lam = c.expand(len(self.x.low), *c.shape).clone()
        mu = torch.empty_like(lam)
        for block in self.model.blocks:
            rows = slice(stop, stop + block.size)
            stop += block.size
            mu[:, :, rows] = self._sloped(lam[:, :, rows], rows)
            lam[:, :, stop:] += mu[:, :, rows] @ A[rows, stop:]
        return lam, mu

    def _passes(self, c: Tensor) -> tuple[Tensor, Tensor]:
        A = self.model.A.detach()
        lam = c.expand(len(self.x.low), *c.shape)
        for _ in range(PASSES):
            lam = c + self._sloped(lam, slice(None)) @ A
        return lam, self._sloped(lam, slice(None))

    def _sloped(self, lam: Tensor, rows: slice) -> Tensor:
        below, above = (
            self.around.slope_below[:, None, rows],
            self.around.slope_above[:, None, rows],
        )
        return lam * torch.where(lam >= 0, below, above)


def substitution(model: ImplicitModel, u: Box, boxes: Layers) -> Substitution:
    """Prepare for `Substitution.lower`.

    Args:
        model: In float64.
        u: Boxes of inputs.
        boxes: Of its pre-activations and states.

    Returns:
        The model with its boxes and lines.
    """
    return Substitution(model, u, boxes.z, boxes.x, lines(model.blocks, boxes.z))


# least value of a row of coefficients on a sample's box
def _least(coefficients: Float[Tensor, "m k n"], box: Box) -> Float[Tensor, "m k"]:
    centre = torch.einsum("mkn,mn->mk", coefficients, box.centre)
    return centre - torch.einsum("mkn,mn->mk", coefficients.abs(), box.radius)
