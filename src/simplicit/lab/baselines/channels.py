"""Whole channels and neurons, once, by the library torch-pruning (Fang et al., CVPR 2023).

Its dependency graph finds the parameters that belong to a channel: the row that makes it, its batch
normalisation, the columns that read it, and those of every channel that it is added to. The scores
are the library's: the group's l1 norm (Li et al., ICLR 2017), the scale of the batch normalisation
(Liu et al., ICCV 2017), the first-order Taylor term |w g| (Molchanov et al., CVPR 2019). Each is
divided by its mean over the group's channels, and the least of all groups go. That can leave a
narrow layer one channel; `per_layer` takes the same part of each group instead.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplicit.errors import InputError
from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.inputs import BATCH, in_order
from simplicit.lab.baselines.tools.size import Cost, left, size
from simplicit.lab.baselines.tools.task import Task
from simplicit.system import progress
from simplicit.system.extras import package

STEPS = 100
"""Times the scores are compared anew until all channels would be gone: a step is one channel or a
few, so that the budget is met closely."""

PASSES = 10
"""Of these, those before which gradients are computed anew, each a pass over the inputs. ResNet-20
at half of its multiply-adds is no more accurate with 25."""

SMALL = 10
"""Samples of a batch whose gradient is squared. With the mean gradient of all samples, at ÷ 2.1 on
held-out images, 784-64-32-16-10 is 12 points less accurate and ResNet-20 5."""

SAMPLES = 16
"""Calibration inputs on which a removal is compared with zeros."""

NEAR = 1e-3
"""Difference of the outputs, relative to the largest, up to which the two agree in float32."""


def channels_l1(
    task: Task, sparsity: float, *, cost: Cost = "weights", per_layer: bool = False
) -> nn.Module:
    """Remove the channels whose weights have the least l1 norm; no data are read.

    Args:
        task: The network.
        sparsity: Fraction to do without, in [0, 1).
        cost: Of what: the non-zero weights, or the multiply-adds of a sample.
        per_layer: The same part of each layer's channels, rather than the least of all layers.

    Returns:
        A smaller network of the same class, as near below the budget as whole channels come.
    """
    importance = package("torch_pruning").importance.GroupMagnitudeImportance(p=1)
    return _pruned(task, sparsity, cost, per_layer, importance)


def channels_bn(
    task: Task, sparsity: float, *, cost: Cost = "weights", per_layer: bool = False
) -> nn.Module:
    """Remove the channels whose batch normalisation has the least scale; no data are read.

    Args:
        task: The network; layers without batch normalisation keep their channels.
        sparsity: Fraction to do without, in [0, 1).
        cost: Of what: the non-zero weights, or the multiply-adds of a sample.
        per_layer: The same part of each layer's channels, rather than the least of all layers.

    Returns:
        A smaller network of the same class, as near below the budget as whole channels come.

    Raises:
        InputError: If the network has no batch normalisation with scales.
    """
    found = (m for m in task.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    if not any(norm.affine for norm in found):
        raise InputError(
            "channels_bn: the network has no batch normalisation with scales; accepted is one that "
            "has, or channels_l1 and channels_taylor"
        )
    importance = package("torch_pruning").importance.BNScaleImportance()
    return _pruned(task, sparsity, cost, per_layer, importance)


def channels_taylor(
    task: Task,
    sparsity: float,
    *,
    cost: Cost = "weights",
    per_layer: bool = False,
    labelled: bool = False,
) -> nn.Module:
    """Remove the channels whose weights have the least |w g|, g the gradient of a loss.

    As in the paper, g² is the mean over small batches: of a trained network the mean of g is small.

    The loss is the cross-entropy to classes that are drawn from the network's own probabilities: no
    label is read. To the probabilities themselves the gradient would be zero, before anything is
    removed; to the most probable classes, it would only ask for larger outputs.

    Args:
        task: The network and its calibration inputs.
        sparsity: Fraction to do without, in [0, 1).
        cost: Of what: the non-zero weights, or the multiply-adds of a sample.
        per_layer: The same part of each layer's channels, rather than the least of all layers.
        labelled: The loss of the task's labelled training set instead, as its authors have it.

    Returns:
        A smaller network of the same class, as near below the budget as whole channels come.
    """
    inputs = task.train_inputs if labelled else task.calibration
    if labelled:
        classes = task.train_labels.to(task.device)
    else:
        with task.observing(task.net):
            probabilities = [
                task.net(u.to(task.device)).softmax(1) for u in task.calibration.split(BATCH)
            ]
            classes = torch.cat(probabilities).multinomial(1).squeeze(1)

    def gradients(net: nn.Module) -> None:
        parameters = list(net.parameters())
        squares = [torch.zeros_like(parameter) for parameter in parameters]
        for u, y in zip(inputs.split(SMALL), classes.split(SMALL), strict=True):
            loss = F.cross_entropy(net(u.to(task.device)), y)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            for square, gradient in zip(squares, found, strict=True):
                square += 0 if gradient is None else gradient.square()
        for parameter, square in zip(parameters, squares, strict=True):
            parameter.grad = square.sqrt()

    importance = package("torch_pruning").importance.GroupTaylorImportance()
    return _pruned(task, sparsity, cost, per_layer, importance, gradients)


def _pruned(
    task: Task,
    sparsity: float,
    cost: Cost,
    per_layer: bool,
    importance: Callable[..., Tensor | None],
    refresh: Callable[[nn.Module], None] = lambda net: None,
) -> nn.Module:
    net, _ = weights.begin(task, sparsity)
    budget = left(task, net, sparsity, cost)
    modes = {module: module.training for module in net.modules()}
    wanted = [parameter.requires_grad for parameter in net.parameters()]
    with task.observing(net), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's
        net.eval().requires_grad_(True)
        fixed = _fixed(task, net)
        pruner = package("torch_pruning").pruner.BasePruner(
            net,
            task.calibration[:1].to(task.device),
            importance,
            global_pruning=not per_layer,
            pruning_ratio=1.0,
            iterative_steps=STEPS,
            ignored_layers=fixed,
            in_channel_groups={},  # the library's defaults outlive the call
            out_channel_groups={},
        )
        with progress.task("removing channels (steps)", STEPS) as advance:
            now = size(task, net, cost)
            for step in range(STEPS):
                if now <= budget:
                    break
                if step % (STEPS // PASSES) == 0:
                    refresh(net)
                for group in pruner.step(interactive=True):
                    group.prune()
                    now = size(task, net, cost)
                    if now <= budget:
                        break
                advance(1)
        net.zero_grad()
    for module, mode in modes.items():
        module.training = mode
    for parameter, want in zip(net.parameters(), wanted, strict=True):
        parameter.requires_grad_(want)
    return net


# the last layer, and those whose channels move on the way to others, which the graph cannot follow
# (shortcuts that fill channels with zeros): removing some is then not the same as zeros
def _fixed(task: Task, net: nn.Module) -> list[nn.Module]:
    names = {module: name for name, module in net.named_modules()}
    ordered = in_order(task, net)
    fixed: list[nn.Module] = [ordered[-1]]
    for layer in ordered[:-1]:
        if not _sound(task, net, names[layer]):
            fixed.append(layer)
    if len(fixed) == len(ordered):
        raise InputError("no layer of the network can lose channels: at least one is needed")
    return fixed


def _sound(task: Task, net: nn.Module, name: str) -> bool:
    u = task.calibration[:SAMPLES].to(task.device)
    outputs = []
    for act in (_zero, lambda group: group.prune()):
        one = copy.deepcopy(net)
        graph = package("torch_pruning").DependencyGraph().build_dependency(one, u[:1])
        layer = one.get_submodule(name)
        channels = graph.get_out_channels(layer)
        if channels < 2:
            return False
        gone = torch.randperm(channels, generator=torch.Generator().manual_seed(0))
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        try:
            act(graph.get_pruning_group(layer, prune, sorted(gone[: channels // 2].tolist())))
            with torch.no_grad():
                outputs.append(one(u))
        except (RuntimeError, IndexError, ValueError):  # shapes that no longer fit
            return False
    zeros, smaller = outputs
    return bool((zeros - smaller).abs().max() <= NEAR * zeros.abs().max().clamp_min(1e-6))


@torch.no_grad()
def _zero(group: Any) -> None:
    graph = group._DG
    for dependency, indices in group:
        module, writes = (
            dependency.target.module,
            graph.is_out_channel_pruning_fn(dependency.handler),
        )
        if not isinstance(getattr(module, "weight", None), Tensor):
            continue
        if writes:
            module.weight[indices] = 0
            if module.bias is not None:
                module.bias[indices] = 0
        elif getattr(module, "groups", 1) == 1:
            module.weight[:, indices] = 0
