"""Distillation on a fixed support, through the fixed point: the one optional use of gradients."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplicit.errors import InputError
from simplicit.explicit.kept import Trainings
from simplicit.explicit.training import evaluating, train
from simplicit.model.implicit import ImplicitModel
from simplicit.refine.states import TeacherStates, samples_at_once, states_and_outputs
from simplicit.refine.worst_case import Ramp, mixed, require_bounds, worst_logits
from simplicit.system import progress

LR, STATES_LR, WORST_LR = 3e-3, 1e-3, 2e-2
"""Towards the outputs, towards the states, too, and of the worst case; chosen on held-out training
images."""

STATES = 300.0
"""Weight of the distance of the states beside the cross-entropy; chosen on held-out training
images of ResNet-20, where 100 to 1,000 do as well."""

SOME = 256
"""Samples on which it is found how much the outputs feel of the states."""

WIDTH = 64
"""Rows of the widest layer up to which `WORST_LR` holds; it is less in proportion where there are
more. Chosen on held-out training images of 784-512-512-10: as many are proved, and 2 % more are
right."""


def finetune(
    model: ImplicitModel,
    net: nn.Module,
    inputs: Tensor,
    *,
    epochs: int = 5,
    lr: float | None = None,
    batch_size: int = 64,
    seed: int = 0,
    eps: float = 0.0,
    states: float | None = None,
    kept: Trainings | None = None,
) -> ImplicitModel:
    """Bring class probabilities (Hinton et al., 2015) and states nearer to the network's.

    With a radius eps, the network's classes are also to hold in the worst case that intervals
    allow within it (see `worst_case`); then its states do not count.

    Zeros stay zeros, and under a ball rows that leave it are scaled back into it, so that the
    certificate holds.

    Args:
        model: The matched model; it is not changed.
        net: The network it came from.
        inputs: Calibration inputs, no labels, (m, *input_shape).
        epochs: Passes over them.
        lr: Adam's learning rate at the start; it falls to 0. By default `LR`, with states
            `STATES_LR`, with eps `worst_rate`.
        batch_size: Samples a step.
        seed: Seed of the orders.
        eps: Radius in l∞, for inputs in [0, 1] and a model without feedback and without operations
            that are kept as they are; 0 for none.
        states: Weight of the distance of the states, see `TeacherStates`, beside the cross-entropy
            of the outputs; 0 for the outputs alone. None: `STATES`, or 0 for models of matrices:
            sweeps have matched their outputs, and the states have made room for that.
        kept: Where the state is kept now and then, see `explicit.train`.

    Returns:
        A new model on the same support. Without a radius it is no further from the network on the
        inputs: if the steps were too long for that, it is a copy of the model, and a line says so.

    Raises:
        InputError: On a negative weight of the states, or one beside a radius; on a radius for a
            model that has no worst case; if the training diverges.
    """
    if states is not None and not 0 <= states < math.inf:
        raise InputError(f"states={states}: accepted is None or a finite number, at least 0")
    if eps:
        require_bounds(model)
        if states:
            raise InputError(f"states={states}: accepted with eps is None or 0")
    tuned = copy.deepcopy(model)
    supports = [(p, p.detach() != 0) for p in tuned.learned]
    like = supports[0][0]
    ball = None
    if model.omega is not None:  # then the first term is that of the states themselves
        A = tuned.equations.hidden[0].terms[0].weight
        slopes = [block.elementwise.lipschitz for block in model.blocks for _ in range(block.size)]
        ball = (A, model.omega, model.certificate.norm, slopes)
    with evaluating(net), torch.no_grad():
        found = [net(batch).softmax(1) for batch in inputs.split(samples_at_once(model))]
        probabilities = torch.cat(found).to(like)

    def after_step() -> None:
        with torch.no_grad():
            for parameter, support in supports:
                parameter.mul_(support)
            if ball is not None:
                _into_ball(*ball)

    teacher = None
    weight = (STATES if model.equations.structured else 0.0) if states is None else states
    if weight and not eps:
        teacher = TeacherStates(net, model, inputs[:SOME], seed)

    def away(some: ImplicitModel, inputs: Tensor, p: Tensor) -> Tensor:
        if teacher is None:
            return F.cross_entropy(some(inputs), p)
        u, interface = some.packed(inputs), some.equations.interface
        x, y = states_and_outputs(some, u)
        logits = y if interface is None else interface.returned(y)
        return F.cross_entropy(logits, p) + weight * teacher.distance(u, x)

    ramp = Ramp(epochs * math.ceil(len(inputs) / batch_size))

    def robust(u: Tensor, p: Tensor) -> Tensor:
        part, y = ramp(), p.argmax(1)
        clean = F.cross_entropy(tuned(u), p)
        return mixed(clean, worst_logits(tuned, u, y, part * eps), y, part)

    train(
        tuned,
        inputs,
        probabilities,
        objective=robust if eps else partial(away, tuned),
        lr=lr or (worst_rate(tuned) if eps else LR if teacher is None else STATES_LR),
        decay=True,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        device=like.device,
        after_step=after_step,
        kept=kept,
        also={"ramp": ramp.done},
    )
    if not eps:
        size = samples_at_once(model)
        parts = [*zip(inputs.split(size), probabilities.split(size), strict=True)]
        before, after = (_mean(partial(away, m), parts) for m in (model, tuned))
        if not after <= before:  # NaN is further, too
            progress.say(
                "fine-tuning has taken the model further from the network on the calibration "
                f"inputs (loss {before:.6g} to {after:.6g}); it is left as it was"
            )
            return copy.deepcopy(model)
    return tuned


def worst_rate(model: ImplicitModel) -> float:
    """Say how fast a model is trained for the worst case.

    Args:
        model: The model.

    Returns:
        The learning rate at the start: the wider the widest layer, the smaller.
    """
    widest = max(len(weight) for weight in model.learned)
    return WORST_LR * min(1.0, WIDTH / widest)


@torch.no_grad()
def _mean(
    loss: Callable[[Tensor, Tensor], Tensor], parts: Sequence[tuple[Tensor, Tensor]]
) -> float:
    total = sum(len(u) * float(loss(u, p)) for u, p in parts)
    return total / sum(len(u) for u, _ in parts)


# rows whose norm L Σ ω_j |a_ij| / ω_i is above the bound are scaled down to it, or just below
def _into_ball(A: Tensor, omega: Tensor, bound: float, slopes: list[float]) -> None:
    norms = (A.abs().double().cpu() @ omega) / omega * torch.tensor(slopes).double() / bound
    A.div_((norms.clamp_min(1.0) * (1 + 1e-6)).where(norms > 1, 1.0)[:, None].to(A))
