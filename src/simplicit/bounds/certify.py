"""certify(): radii within which no input changes the class, proved."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from simplicit.bounds.asked import classes, radii, samples, with_two_classes, within
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
    x: Any,
    y: Any,
    eps: float | Any,
    bounds: Any = None,
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
    - `branches`: as `linear`, with slopes that are chosen for each bound, on a few parts of the
      ball (`branches`). Only if named: it takes seconds a sample. Without feedback.

    Networks with operations that are kept as they are cannot be certified.

    Args:
        model: An implicit model, or any network that `implicitize` takes: then as its layers.
        x: Samples (m, …), in the model's own input shape: a tensor or an array.
        y: Their classes: (m,), (m, 1), or one-hot (m, q). Of one logit the classes are 0 and 1: its
            sign.
        eps: Radius of the ball, in the units of x: one for all, or one for each sample.
        bounds: Least and largest value of an input: the ball is cut there. Numbers, or one for each
            input. Not cut by default.
        methods: Which bounds; None for the first three.

    Returns:
        `certified` (m,), that is radius ≥ eps, and `radius` (m,) float64, within 1 % of where
        the proof ends and never beyond it. Samples, classes, eps or bounds that cannot be, and
        a model whose well-posedness is not certified, are an `InputError`.
    """
    wanted = radii(eps, len(x))
    margins, right = _margins(model, x, y, bounds, methods)
    radius = torch.zeros(len(right), dtype=torch.float64)
    if margins is not None:
        radius[right] = margins.radii(torch.where(wanted > 0, wanted, GUESS)[right])
    return Certified((radius >= wanted) & (radius > 0), radius)


def proved(
    model: nn.Module,
    x: Any,
    y: Any,
    eps: float | Any,
    bounds: Any = None,
    *,
    methods: Sequence[str] | None = None,
) -> Bool[Tensor, "m"]:
    """Decide at one radius, which takes a tenth of the time that the largest radius does.

    Args:
        model: As in `certify`.
        x: Samples.
        y: Their classes.
        eps: Radius of the ball, or one for each sample.
        bounds: Least and largest value of an input, or of each.
        methods: Which bounds.

    Returns:
        `certify(…).certified`, for eps above 0. Errors are those of `certify`.
    """
    wanted = radii(eps, len(x))
    margins, right = _margins(model, x, y, bounds, methods)
    found = torch.zeros(len(right), dtype=torch.bool)
    if margins is not None:
        with torch.no_grad():
            found[right] = margins.proved(wanted[right], torch.arange(len(margins.u)))
    return found


# the samples that are classified right, and which they are
def _margins(
    model: nn.Module,
    x: Any,
    y: Any,
    bounds: Any,
    methods: Sequence[str] | None,
) -> tuple[Margins | None, Bool[Tensor, "m"]]:
    x = samples(x)
    exact = with_two_classes(as_model(model, x))
    u, y = exact.packed(x.double()), classes(y, len(x), exact.q)
    limits = within(bounds, u, exact.input_shape)
    if not len(y):
        return None, torch.zeros(0, dtype=torch.bool)
    with torch.no_grad():
        found = require_well_posed(exact)
        right = torch.cat([exact.outputs(part).argmax(1) for part in u.split(1000)]) == y
        return Margins(equations_of(exact), found, u[right], y[right], limits, methods), right


def as_model(model: nn.Module, example: Float[Tensor, "m *shape"]) -> ImplicitModel:
    """Write any model or network as an implicit model in float64, on the CPU.

    Args:
        model: An implicit model, or a feed-forward network.
        example: Inputs for the network.

    Returns:
        The same function; a network as a `layered` model.

    Raises:
        InputError: If a layer is an operation that was kept as it is, or the network has other
            inputs or outputs than a row of numbers.
    """
    if isinstance(model, ImplicitModel):
        exact = copy.deepcopy(model).cpu().cast(torch.float64)
    else:
        equations = capture(model, example[:2]).changed(lambda t: t.detach().cpu())
        exact = ImplicitModel.from_equations(equations).cast(torch.float64)
    outputs = exact.equations.returned
    if len(outputs) > 1 or (outputs and len(outputs[0].shape) > 1):
        every = ", ".join(str(tuple(output.shape)) for output in outputs)
        raise InputError(f"outputs of shape {every}: accepted is one row of logits a sample")
    if outputs and outputs[0].end == "sigmoid" and exact.q > 1:
        raise InputError(f"{exact.q} events: accepted are classes, or one event")
    if any(i.dtype for i in exact.equations.inputs):
        raise InputError("whole numbers as inputs: no ball is around them; accepted are others")
    for block in exact.blocks:
        if isinstance(block.phi, Kept):
            raise InputError(f"layer {block.name}: no bounds are known of {block.phi.name}")
    return exact
