"""certify(): radii within which no input changes the class, proved."""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from simplicit.bounds.exact import equations_of, require_well_posed
from simplicit.bounds.radii import METHODS, Margins
from simplicit.capture.read import capture
from simplicit.equations.layer_phi import Kept
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel

__all__ = ["METHODS", "Certified", "as_model", "certify", "proved"]

GUESS = 0.01
"""Radius at which the search begins where none is asked for."""


class Certified(NamedTuple):
    """What is proved of each sample.

    Args:
        certified: Whether no input within eps, in l∞, has another class.
        radius: The largest radius for which that was proved; 0 for a sample that is misclassified.
    """

    certified: Bool[Tensor, "m"]
    radius: Float[Tensor, "m"]


def certify(
    model: nn.Module,
    x: Float[Tensor, "m *shape"],
    y: Int[Tensor, "m"],
    eps: float,
    bounds: tuple[float, float] | None = None,
    *,
    methods: Sequence[str] | None = None,
) -> Certified:
    """Prove that no input in the l∞ ball around each sample changes its class.

    Everything is float64, rounded outward, on the weights as they are stored; it speaks of the
    model in exact arithmetic. Each sample gets the tightest of these bounds on its margins:

    - `lipschitz`: the global sensitivity matrix (`lipschitz`);
    - `mixed-monotone`: boxes of the states (`layer_boxes`; with feedback `mixed_monotone`);
    - `linear`: backward substitution (`linear_bounds`) with those boxes, layer by layer. For each
      sample and radius it takes at most `linear_bounds.WORK` multiplications and those of two
      predictions a class; in networks that need more, some boxes are not refined;
    - `interval`: with feedback, boxes without the mixed-monotone refinement. Only if named.

    Networks with operations that are kept as they are cannot be certified.

    Args:
        model: An implicit model, or any network that `implicitize` takes: then as its layers.
        x: Samples, in the model's own input shape.
        y: Their classes.
        eps: Radius of the ball, in the units of x.
        bounds: Least and largest value of an input: the ball is cut there. Not cut by default.
        methods: Which bounds; None for the first three.

    Returns:
        `certified` (m,), that is radius ≥ eps, and `radius` (m,) float64, within 1 % of where
        the proof ends and never beyond it. Samples, classes, eps or bounds that cannot be, and
        a model whose well-posedness is not certified, are an `InputError`.
    """
    margins, right = _margins(model, x, y, eps, bounds, methods)
    radius = torch.zeros(len(y), dtype=torch.float64)
    if margins is not None:
        radius[right] = margins.radii(eps or GUESS)
    return Certified((radius >= eps) & (radius > 0), radius)


def proved(
    model: nn.Module,
    x: Float[Tensor, "m *shape"],
    y: Int[Tensor, "m"],
    eps: float,
    bounds: tuple[float, float] | None = None,
    *,
    methods: Sequence[str] | None = None,
) -> Bool[Tensor, "m"]:
    """Decide at one radius, which takes a tenth of the time that the largest radius does.

    Args:
        model: As in `certify`.
        x: Samples.
        y: Their classes.
        eps: Radius of the ball.
        bounds: Least and largest value of an input.
        methods: Which bounds.

    Returns:
        `certify(…).certified`, for eps above 0. Errors are those of `certify`.
    """
    margins, right = _margins(model, x, y, eps, bounds, methods)
    found = torch.zeros(len(y), dtype=torch.bool)
    if margins is not None:
        every = torch.arange(len(margins.u))
        radius = torch.full((len(every),), float(eps), dtype=torch.float64)
        with torch.no_grad():
            found[right] = margins.proved(radius, every)
    return found


# the samples that are classified right, and which they are
def _margins(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    bounds: tuple[float, float] | None,
    methods: Sequence[str] | None,
) -> tuple[Margins | None, Bool[Tensor, "m"]]:
    exact = as_model(model, x)
    if not 0 <= eps < math.inf:
        raise InputError(f"eps={eps}: accepted is a finite number, at least 0")
    if len(x) != len(y) or tuple(x.shape[1:]) != exact.input_shape:
        raise InputError(
            f"x of shape {tuple(x.shape)} and {len(y)} classes: accepted is one class per sample "
            f"of shape {exact.input_shape}"
        )
    u, y = x.detach().cpu().double().flatten(1), y.detach().cpu().long()
    if not u.isfinite().all():
        raise InputError("x holds NaN or infinity: accepted are finite samples")
    if len(y) and not (0 <= int(y.min()) and int(y.max()) < exact.q):
        raise InputError(f"y: accepted are classes from 0 to {exact.q - 1}")
    if bounds is not None and len(u) and not bounds[0] <= float(u.min()) <= u.max() <= bounds[1]:
        raise InputError(f"bounds={bounds}: x has values outside of them")
    if not len(y):
        return None, torch.zeros(0, dtype=torch.bool)
    with torch.no_grad():
        found = require_well_posed(exact)
        parts = x.detach().cpu().double().split(1000)
        right = torch.cat([exact(part).argmax(1) for part in parts]) == y
        return Margins(equations_of(exact), found, u[right], y[right], bounds, methods), right


def as_model(model: nn.Module, example: Float[Tensor, "m *shape"]) -> ImplicitModel:
    """Write any model or network as an implicit model in float64, on the CPU.

    Args:
        model: An implicit model, or a feed-forward network.
        example: Inputs for the network.

    Returns:
        The same function; a network as a `layered` model.

    Raises:
        InputError: If a layer is an operation that was kept as it is.
    """
    if isinstance(model, ImplicitModel):
        exact = copy.deepcopy(model).cpu().cast(torch.float64)
    else:
        equations = capture(model, example[:2]).changed(lambda t: t.detach().cpu())
        exact = ImplicitModel.from_equations(equations).cast(torch.float64)
    for block in exact.blocks:
        if isinstance(block.phi, Kept):
            raise InputError(f"layer {block.name}: no bounds are known of {block.phi.name}")
    return exact
