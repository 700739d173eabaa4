"""The strongest robustness that costs no more accuracy than is allowed, without gradient training.

The rows of a finished model are matched on the outputs again (`joint`), with a price on the path
norm (`path_norm`) and on inputs with noise, whose targets are the network's outputs without it. The
price rises on a warm-started path. No label is used: a model that disagrees with the network on a
held-out input loses what the network's own probabilities say, p(its class) − p(the model's class).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.structure import RowBlock
from simplicit.equations.phi import Phi
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel
from simplicit.outputs.sweeps import INACTIVE, JointMatching

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
    model: ImplicitModel,
    inputs: Float[Tensor, "m p"],
    targets: Float[Tensor, "m q"],
    allowed: float,
    report: Step = lambda *_: None,
    *,
    seed: int = 0,
) -> tuple[ImplicitModel, list[Level]]:
    """Shrink a model's path norm as far as the allowed loss of accuracy lets it.

    Args:
        model: A `triangular` or `layered` model of the network.
        inputs: Calibration inputs, flattened.
        targets: The network's logits on them.
        allowed: Loss of accuracy, a fraction, that the strongest price may be estimated to cost.
        report: Called after each price.
        seed: Of the noise and of the part held out.

    Returns:
        The new model, on a part of the old one's support, and the path.

    Raises:
        InputError: If there are fewer than 20 inputs, or the model has feedback.
    """
    if model.structure == "full" or not all(isinstance(b.phi, Phi) for b in model.blocks):
        raise InputError(
            "robustness: accepted are linear layers and elementwise activations, in structure "
            "triangular or layered"
        )
    if len(inputs) < 20:
        raise InputError(f"robustness: {len(inputs)} calibration inputs; at least 20 are needed")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator)
    held, rest = order.split([int(HELD_OUT * len(order)), len(order) - int(HELD_OUT * len(order))])
    held_inputs, held_targets = inputs[held], targets[held]
    inputs, targets = inputs[rest], targets[rest]
    noise = NOISE * float(inputs.max() - inputs.min())

    def matching(W: Tensor, u: Tensor, y: Tensor) -> JointMatching:
        return _joint(model, W, u, y)

    def at(price: float, W: Tensor) -> tuple[Level, Tensor]:
        for _ in range(SWEEPS):
            shift = 2 * torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype) - 1
            joint = matching(W, inputs + noise * shift.to(inputs), targets)
            joint.level = price
            joint.sweep()
            W = joint.W
        seen = matching(W, held_inputs, held_targets)
        return Level(price, _loss(seen.outputs, held_targets), seen.path_norm()), W

    W = _weights(model)
    start = matching(W, held_inputs, held_targets)
    path = [Level(0.0, _loss(start.outputs, held_targets), start.path_norm())]
    if start.path_norm() <= 0:
        return model, path
    price, good, bad = FIRST / start.path_norm(), 0.0, None
    for _ in range(LEVELS):
        level, trial = at(price, W)
        path.append(level)
        report(1.0, f"costs {100 * level.loss:.2f} points, path norm {level.norm:.0f}")
        if not level.loss <= allowed:
            bad = price
            break
        W, good, price = trial, price, price * RISE
    for _ in range(HALVINGS if bad and good else 0):
        assert bad is not None
        price = (good * bad) ** 0.5
        level, trial = at(price, W)
        path.append(level)
        report(1.0, f"costs {100 * level.loss:.2f} points, path norm {level.norm:.0f}")
        if level.loss <= allowed:
            W, good = trial, price
        else:
            bad = price
    return _with_weights(model, W), path


# what the network's probabilities say that the model's classes lose
def _loss(outputs: Tensor, targets: Tensor) -> float:
    p = targets.double().softmax(1)
    return float((p.amax(1) - p.gather(1, outputs.argmax(1)[:, None])[:, 0]).mean())


def _joint(model: ImplicitModel, W: Tensor, u: Tensor, y: Tensor) -> JointMatching:
    n, total = model.n, W.shape[1]
    ones = u.new_ones(len(u), total - n - model.p)
    V = torch.cat([u.new_zeros(len(u), n), u, ones], 1)
    blocks, stop = [], n
    for block in reversed(model.blocks):
        rows = slice(stop - block.size, stop)
        blocks.append(RowBlock(block.name, rows, torch.arange(stop, total, device=W.device)))
        stop = rows.start
    every = torch.arange(total, device=W.device)
    blocks.append(RowBlock("output", slice(n, n + model.q), every))
    phis = [block.phi for block in reversed(model.blocks) if isinstance(block.phi, Phi)]
    return JointMatching(W, blocks, phis, V, y, every >= n + model.p, INACTIVE)


def _weights(model: ImplicitModel) -> Float[Tensor, "r N"]:
    AB, CD = torch.cat([model.A, model.B], 1), torch.cat([model.C, model.D], 1)
    if model.b is None or model.d is None:
        return torch.cat([AB, CD]).detach().clone()
    rows = (torch.cat([AB, model.b[:, None]], 1), torch.cat([CD, model.d[:, None]], 1))
    return torch.cat(rows).detach().clone()


def _with_weights(model: ImplicitModel, W: Tensor) -> ImplicitModel:
    n, p, W = model.n, model.p, W.to(model.A)
    biased = W.shape[1] > n + p
    return ImplicitModel(
        W[:n, :n], W[:n, n : n + p], W[n:, :n], W[n:, n : n + p],
        W[:n, -1] if biased else None, W[n:, -1] if biased else None,
        blocks=model.blocks, structure=model.structure, input_shape=model.input_shape,
        reference_nonzeros=model.reference_nonzeros,
    )  # fmt: skip
