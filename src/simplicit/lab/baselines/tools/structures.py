"""Structures that can be removed whole: hidden neurons and output channels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from simplicit.lab.baselines.tools.finetune import Held, hold
from simplicit.lab.baselines.tools.inputs import in_order, once
from simplicit.lab.baselines.tools.task import Task
from simplicit.lab.baselines.tools.weights import Layer, layers

Norm = nn.BatchNorm1d | nn.BatchNorm2d

MARKS = 64
"""Random signs a feature is tried with: a ReLU hides a live one with probability 2⁻⁶⁴."""


@dataclass(frozen=True)
class Structures:
    """The neurons or channels of one hidden layer, and the batch normalisation that reads them.

    Args:
        layer: Its weight has one row a structure.
        norm: Where the layer's output goes, if straight into a batch normalisation.
        branch: Whether that goes straight into a sum with what bypasses the layer: without all of
            its structures the network is one residual block shorter.
    """

    layer: Layer
    norm: Norm | None
    branch: bool = False

    @property
    def last(self) -> Layer | Norm:
        """The module whose output, times zero, is as good as removed."""
        return self.layer if self.norm is None else self.norm

    def parameters(self) -> list[Tensor]:
        """All that belongs to the structures.

        Returns:
            Parameters with one row or number for each structure.
        """
        both = [*self.layer.parameters(recurse=False), *self.last.parameters(recurse=False)]
        return list(dict.fromkeys(both))

    def spread(self, values: Tensor, output: Tensor) -> Tensor:
        """One value a structure, shaped so that it multiplies an output of `last`.

        Args:
            values: One a structure.
            output: Structures are its last dimension after a linear layer, its second otherwise.

        Returns:
            A view of the values.
        """
        if isinstance(self.last, nn.Linear):
            return values
        return values.view(-1, *[1] * (output.dim() - 2))


def hidden(task: Task, net: nn.Module) -> list[Structures]:
    """The structures of all layers but the last to be called.

    Args:
        task: The task.
        net: A copy of its network.

    Returns:
        One entry a hidden layer, in the order of the calls. A layer whose batch normalisation has
        no weights is left out: its outputs cannot be scaled to zero.
    """
    outputs: list[tuple[nn.Module, Tensor]] = []
    read: list[Tensor] = []
    norms: dict[nn.Module, Norm] = {}

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        if isinstance(module, Norm):
            norms.update((layer, module) for layer, out in outputs if out is args[0])
        else:
            read.append(args[0])
        outputs.append((module, output))

    handles = [
        module.register_forward_hook(hook)
        for module in net.modules()
        if isinstance(module, Layer | Norm)
    ]
    with _Sums() as sums:
        once(task, net, handles, task.calibration[:1])
    called = {module for module, _ in outputs}
    found = [layer for layer in in_order(task, net) if layer in called][:-1]
    entries = [Structures(layer, norms.get(layer)) for layer in found]
    ends = _branch_ends(entries, outputs, read, sums.operands)
    return [
        replace(entry, branch=entry.last in ends)
        for entry in entries
        if entry.norm is None or entry.norm.affine
    ]


class _Sums(TorchFunctionMode):
    """Keeps the operands of every sum of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operands: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        pair = args[:2]
        if getattr(func, "__name__", "") in ("add", "add_", "__add__", "__iadd__") and all(
            isinstance(operand, Tensor) and operand.ndim > 1 for operand in pair
        ):
            self.operands.append(pair)
        return func(*args, **(kwargs or {}))


def _branch_ends(
    entries: Sequence[Structures],
    outputs: Sequence[tuple[nn.Module, Tensor]],
    read: Sequence[Tensor],
    sums: Sequence[tuple[Tensor, Tensor]],
) -> set[nn.Module]:
    # a shortcut with a layer of its own reads what the branch's first layer reads
    made_from = dict(zip((m for m, _ in outputs if not isinstance(m, Norm)), read, strict=True))
    ends = {}
    for module, output in outputs:
        ends |= {id(output): e for e in entries if e.last is module}
    found: set[nn.Module] = set()
    for pair in sums:
        both = [ends[id(operand)] for operand in pair if id(operand) in ends]
        if len(both) == 2:
            alone = [e for e in both if sum(x is made_from[e.layer] for x in read) == 1]
            both = alone if len(alone) == 1 else []
        found |= {entry.last for entry in both}
    return found


def remove(
    task: Task, net: nn.Module, groups: Sequence[Structures], stays: Sequence[Bool[Tensor, "..."]]
) -> Held:
    """Set to zero all that belongs to some structures, and all weights that read only them.

    Structures that are read by nothing but what is removed go, too: the first layers of a residual
    branch whose last layer is gone.

    Args:
        task: The task.
        net: A copy of its network, changed in place.
        groups: Its hidden structures.
        stays: For each entry, true for the structures that stay.

    Returns:
        What has to be held at zero if the network is trained further.
    """
    stays = _read(task, net, groups, stays)
    held = [
        (parameter, stay.view(-1, *[1] * (parameter.dim() - 1)).expand_as(parameter))
        for entry, stay in zip(groups, stays, strict=True)
        for parameter in entry.parameters()
    ]
    for layer, alive in _alive(task, net, groups, stays).items():
        outputs, inputs = layer.weight.shape[:2]
        read = alive.view(-1, inputs)  # one line a group of the convolution
        mask = read.repeat_interleave(outputs // len(read), dim=0)
        mask = mask.view(outputs, inputs, *[1] * (layer.weight.dim() - 2))
        held.append((layer.weight, mask.expand_as(layer.weight)))
    hold(held)
    return held


def _read(
    task: Task, net: nn.Module, groups: Sequence[Structures], stays: Sequence[Tensor]
) -> list[Bool[Tensor, " structures"]]:
    """Which of the structures that stay the outputs depend on, through others that stay.

    Random numbers take the place of the structures' outputs, as in `_alive`, and of the gradients
    that come back to them: what is zero then is always zero, and nothing vanishes on the way.

    Returns:
        For each entry, one truth value a structure.
    """
    wanted = [torch.zeros_like(stay) for stay in stays]
    handles = []
    for entry, stay, read in zip(groups, stays, wanted, strict=True):

        def mark(_: nn.Module, __: tuple, out: Tensor, entry=entry, stay=stay, read=read) -> Tensor:
            kept = out * entry.spread(stay, out)
            marked = kept + (torch.randn_like(out) * entry.spread(stay, out) - kept).detach()

            def look(gradient: Tensor) -> Tensor:
                features = gradient.movedim(-1 if isinstance(entry.last, nn.Linear) else 1, 0)
                read.logical_or_((features != 0).flatten(1).any(dim=1))
                return torch.randn_like(gradient) * (gradient != 0)

            marked.register_hook(look)
            return marked

        handles.append(entry.last.register_forward_hook(mark))
    try:
        with task.observing(net), torch.enable_grad():
            shape = (MARKS, *task.calibration.shape[1:])
            noise = torch.randn(shape, dtype=task.calibration.dtype).to(task.device)
            logits = net(noise.requires_grad_())
            logits.backward(torch.randn_like(logits), inputs=noise)
    finally:
        for handle in handles:
            handle.remove()
    return [stay & read for stay, read in zip(stays, wanted, strict=True)]


def _alive(
    task: Task, net: nn.Module, groups: Sequence[Structures], stays: Sequence[Tensor]
) -> dict[Layer, Bool[Tensor, " features"]]:
    """Which features of each layer's input depend on a structure that stays, or on the input.

    Random numbers take the place of the structures' outputs, zeros that of the removed ones: what
    is zero then is always zero, through sums, pooling, flattening and any φ with φ(0) = 0.

    Returns:
        For each layer that is called, one truth value an input channel or feature.
    """
    alive: dict[Layer, Tensor] = {}

    def look(module: Layer, args: tuple) -> None:
        features = args[0].movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
        seen = (features != 0).flatten(1).any(dim=1)
        alive[module] = seen | alive.get(module, torch.zeros_like(seen))

    handles = [layer.register_forward_pre_hook(look) for layer in layers(net)]  # pyright: ignore
    for entry, stay in zip(groups, stays, strict=True):

        def mark(_: nn.Module, __: tuple, out: Tensor, entry=entry, stay=stay) -> Tensor:
            return torch.randn_like(out) * entry.spread(stay, out)

        handles.append(entry.last.register_forward_hook(mark))
    sample = task.calibration[:1]
    with task.observing(net):
        noise = torch.randn(MARKS, *sample.shape[1:], dtype=sample.dtype)
    once(task, net, handles, noise)
    return alive
