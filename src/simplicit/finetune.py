"""Distillation on a fixed support, through the fixed point: the one optional use of gradients."""

import copy

import torch
from torch import Tensor, nn

from . import progress
from .errors import InputError
from .explicit import evaluating
from .model import ImplicitModel


def finetune(
    model: ImplicitModel,
    net: nn.Module,
    inputs: Tensor,
    *,
    epochs: int = 5,
    lr: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> ImplicitModel:
    """Bring the model's class probabilities nearer to the network's (Hinton et al., 2015).

    Zeros stay zeros, and under a ball rows that leave it are scaled back into it, so that the
    certificate holds. The learning rate falls to zero along a half cosine.

    Args:
        model: The matched model; it is not changed.
        net: The network it came from.
        inputs: Calibration inputs, no labels, (m, *input_shape).
        epochs: Passes over them.
        lr: Adam's first learning rate.
        batch_size: Samples a step.
        seed: Seed of the orders.

    Returns:
        A new model on the same support.

    Raises:
        InputError: If the loss is no longer finite.
    """
    tuned = copy.deepcopy(model)
    ball = None if model.weights is None else (model.weights, model.certificate.norm)
    slopes = [block.phi.lipschitz for block in model.blocks for _ in range(block.size)]
    supports = [(p, p.detach() != 0) for p in (tuned.A, tuned.B, tuned.C, tuned.D)]
    with evaluating(net), torch.no_grad():
        parts = [net(batch).softmax(1) for batch in inputs.split(1000)]
    wanted = torch.cat(parts).to(tuned.A)
    optimizer = torch.optim.Adam(tuned.parameters(), lr=lr)
    steps = epochs * -(-len(inputs) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    random = torch.Generator().manual_seed(seed)
    with progress.task("fine-tuning (samples)", float(epochs * len(inputs))) as advance:
        for _ in range(epochs):
            for batch in torch.randperm(len(inputs), generator=random).split(batch_size):
                loss = nn.functional.cross_entropy(tuned(inputs[batch]), wanted[batch])
                if not bool(torch.isfinite(loss)):
                    raise InputError(f"fine-tuning diverged: try a learning rate below {lr:g}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    for parameter, support in supports:
                        parameter.mul_(support)
                    if ball is not None:
                        _into_ball(tuned.A, *ball, slopes)
                advance(float(len(batch)))
    return tuned


# rows whose norm L Σ ω_j |a_ij| / ω_i is above the bound are scaled down to it, or just below
def _into_ball(A: Tensor, omega: Tensor, bound: float, slopes: list[float]) -> None:
    norms = (A.abs().double().cpu() @ omega) / omega * torch.tensor(slopes).double() / bound
    A.div_((norms.clamp_min(1.0) * (1 + 1e-6)).where(norms > 1, 1.0)[:, None].to(A))
