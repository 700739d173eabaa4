"""The methods that are compared, ours among them, and how what they made is fine-tuned."""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import simplicit
from simplicit import ImplicitModel
from simplicit.explicit.training import train
from simplicit.lab import baselines
from simplicit.lab.baselines import Task
from simplicit.refine.finetune import finetune

LR = 1e-3
"""Adam's learning rate at the start of fine-tuning towards the outputs; it falls to 0. Chosen on
held-out training images, ResNet-20 with channels_l1 at ÷ 2.1: as good as 3e-3, better than 1e-2."""

PATTERN = 2.0
"""The only ratio of n:m methods: 2:4. Zeros in a torch module save no time there."""


def ours(net: nn.Module, inputs: Tensor, ratio: float) -> ImplicitModel:
    """Make the network smaller by `implicitize`.

    Args:
        net: A trained network.
        inputs: Calibration inputs, no labels.
        ratio: Multiply-adds of the network over those of the result.

    Returns:
        A model of whole channels.
    """
    return simplicit.implicitize(net, inputs, pattern="channels", flops=1 - 1 / ratio)


Method = Callable[[Task, float], nn.Module]


def _budgeted(method: Callable[..., nn.Module], **options: bool) -> Method:
    return lambda task, ratio: method(task, 1 - 1 / ratio, cost="multiply-adds", **options)


def _two_four(method: Callable[..., nn.Module]) -> Method:
    return lambda task, ratio: method(task, 0.5)


METHODS: dict[str, Method] = {
    "ours": lambda task, ratio: ours(task.net, task.calibration, ratio),
    "channels_l1": _budgeted(baselines.channels_l1),
    "channels_bn": _budgeted(baselines.channels_bn),
    "channels_taylor": _budgeted(baselines.channels_taylor),
    "channels_l1, per layer": _budgeted(baselines.channels_l1, per_layer=True),
    "channels_taylor, per layer": _budgeted(baselines.channels_taylor, per_layer=True),
    "channels_taylor, labels": _budgeted(baselines.channels_taylor, labelled=True),
    "svd": _budgeted(baselines.svd),
    "svd_whitened": _budgeted(baselines.svd_whitened),
    "wanda_nm": _two_four(baselines.wanda_nm),
    "sparsegpt_nm": _two_four(baselines.sparsegpt_nm),
}
"""By name: functions of the task and of the ratio."""

FIXED = ("wanda_nm", "sparsegpt_nm")
"""Methods that have one ratio, `PATTERN`."""


def finetuned(made: nn.Module, net: nn.Module, inputs: Tensor, epochs: int) -> nn.Module:
    """Bring what a method made nearer to the network, without labels.

    Args:
        made: What a method returned.
        net: The network.
        inputs: Calibration inputs.
        epochs: Passes over them.

    Returns:
        A model of ours as `implicit.finetune` tunes it, towards the network's states and outputs;
        another network tuned towards its outputs. Zeros stay zeros.
    """
    if isinstance(made, ImplicitModel):
        return finetune(made, net, inputs, epochs=epochs)
    made = copy.deepcopy(made)
    with torch.no_grad():
        wanted = torch.cat([net(u) for u in inputs.split(500)])
    held = [(p, p.detach() != 0) for p in made.parameters() if p.ndim > 1]

    def hold() -> None:
        with torch.no_grad():
            for parameter, stays in held:
                parameter.mul_(stays)

    made.requires_grad_(True)
    train(
        made, inputs, wanted, lr=LR, decay=True, epochs=epochs, batch_size=64, seed=0,
        log_interval=10**9, objective=partial(_distance, made), after_step=hold,
    )  # fmt: skip
    return made


def _distance(made: nn.Module, u: Tensor, logits: Tensor) -> Tensor:
    return F.mse_loss(made(u), logits)
