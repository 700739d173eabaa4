"""The strongest robustness that costs no more accuracy than is allowed, without gradient training.

The rows of a finished model are swept on the outputs again (`sweeps`), with a price on the path
norm (`path_norm`) and on inputs with noise, whose targets are the network's outputs without it. The
price rises on a warm-started path. No label is used: a model that disagrees with the network on a
held-out input loses what the network's own probabilities say, p(its class) − p(the model's class).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.rows import Rows
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.outputs.sweeps.sweeps import INACTIVE, Sweeps

HELD_OUT = 0.1
"""Part of the inputs on which the loss is estimated."""

NOISE = 0.1
"""Uniform noise on inputs, ± so many times their range: 0.1 of 0 … 1."""

FIRST = 0.01
"""First price, times the model's path norm: in units of the distance of the outputs."""

RISE = 1.8
"""Factor between two prices."""

LEVELS = 12
"""Most prices that are tried, before the path norm is gone anyway."""

SWEEPS = 2
"""Sweeps at each price, each with noise of its own."""

HALVINGS = 2
"""Halvings of the last interval of prices, on a logarithmic scale."""

Step = Callable[[float, str], None]


@dataclass(frozen=True)
class Level:
    """One price on the path: what it costs and what it buys."""

    price: float
    loss: float
    norm: float


def robustify(
    model: StateEquations,
    layers: Sequence[Rows],
    inputs: Float[Tensor, "m p"],
    targets: Float[Tensor, "m q"],
    allowed: float,
    report: Step = lambda *_: None,
    *,
    inactive: float = INACTIVE,
    workers: int = 1,
    seed: int = 0,
    more: Callable[[], bool] = lambda: True,
) -> tuple[StateEquations, list[Level]]:
    """Shrink a model's path norm as far as the allowed loss of accuracy lets it.

    Args:
        model: A model without feedback.
        layers: Its rows.
        inputs: Calibration inputs, flattened.
        targets: The network's logits on them.
        allowed: Loss of accuracy, a fraction, that the strongest price may be estimated to cost.
        report: Called after each price.
        inactive: Weight of samples whose state is off, see `Sweeps`.
        workers: Threads that share the samples.
        seed: Of the noise and of the part held out.
        more: Asked before each price whether there is time for it.

    Returns:
        The new model, on a part of the old one's support, and the path. What `require_slopes`
        refuses is an `InputError`.
    """
    require_slopes(model, len(inputs))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator)
    held, rest = order.split([int(HELD_OUT * len(order)), len(order) - int(HELD_OUT * len(order))])
    held_inputs, held_targets = inputs[held], targets[held]
    inputs, targets = inputs[rest], targets[rest]
    noise = NOISE * float(inputs.max() - inputs.min())

    def swept(equations: StateEquations, u: Tensor, y: Tensor) -> Sweeps:
        return Sweeps(equations, layers, u, y, inactive, workers, seed)

    def at(price: float, equations: StateEquations) -> tuple[Level, StateEquations]:
        for _ in range(SWEEPS):
            shift = 2 * torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype) - 1
            joint = swept(equations, inputs + noise * shift.to(inputs), targets)
            joint.price = price
            joint.sweep()
            equations = joint.equations
        seen = swept(equations, held_inputs, held_targets)
        return Level(price, _loss(seen.samples.outputs, held_targets), seen.path_norm()), equations

    start = swept(model, held_inputs, held_targets)
    path = [Level(0.0, _loss(start.samples.outputs, held_targets), start.path_norm())]
    if start.path_norm() <= 0:
        return model, path
    price, good, bad = FIRST / start.path_norm(), 0.0, None
    for _ in range(LEVELS):
        if not more():
            return model, path
        level, trial = at(price, model)
        path.append(level)
        report(1.0, f"costs {100 * level.loss:.2f} points, path norm {level.norm:.0f}")
        if not level.loss <= allowed:
            bad = price
            break
        model, good, price = trial, price, price * RISE
    for _ in range(HALVINGS if bad and good else 0):
        if not more():
            break
        assert bad is not None
        price = (good * bad) ** 0.5
        level, trial = at(price, model)
        path.append(level)
        report(1.0, f"costs {100 * level.loss:.2f} points, path norm {level.norm:.0f}")
        if level.loss <= allowed:
            model, good = trial, price
        else:
            bad = price
    return model, path


def require_slopes(equations: StateEquations, m: int) -> None:
    """Refuse a network or model for which no level can be found.

    Args:
        equations: The network or model.
        m: Calibration inputs.

    Raises:
        InputError: If there are fewer than 20 inputs, or there is feedback, or an operation is kept
            as it is.
    """
    if equations.feedback:
        raise InputError("robustness: accepted are structures triangular and layered")
    if equations.kept:
        raise InputError(
            f"robustness: {equations.kept[0]} is kept as it is, so no slope of it is known; "
            "accepted are networks whose operations are all read"
        )
    if m < 20:
        raise InputError(f"robustness: {m} calibration inputs; at least 20 are needed")


# what the network's probabilities say that the model's classes lose
def _loss(outputs: Tensor, targets: Tensor) -> float:
    p = targets.double().softmax(1)
    return float((p.amax(1) - p.gather(1, outputs.argmax(1)[:, None])[:, 0]).mean())
