"""What each layer reads on the calibration inputs, as the rows of a matrix."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from simplicit.equations.weighted_maps import patches
from simplicit.errors import InputError
from simplicit.lab.baselines.tools.task import Task
from simplicit.lab.baselines.tools.weights import Layer, layers

BATCH = 128
"""Samples that run through the network at a time."""

VALUES = 1 << 24
"""Most numbers in the rows yielded at a time, unless one sample has more: 64 MB."""


class _Enough(Exception):
    """Ends a pass after the layer that is looked at."""


def once(task: Task, net: nn.Module, handles: Sequence[RemovableHandle], inputs: Tensor) -> None:
    """Run inputs through a network whose modules are hooked, and take the hooks off.

    Args:
        task: The task.
        net: A copy of its network.
        handles: The hooks.
        inputs: Samples.
    """
    try:
        with task.observing(net):
            net(inputs.to(task.device))
    finally:
        for handle in handles:
            handle.remove()


def in_order(task: Task, net: nn.Module) -> list[Layer]:
    """The layers that count, in the order in which they are called.

    Args:
        task: The task.
        net: A copy of its network.

    Returns:
        The layers; those never called as modules come last.
    """
    called: list[nn.Module] = []
    counted = layers(net)
    handles = [
        layer.register_forward_pre_hook(lambda module, _: called.append(module))
        for layer in counted
    ]
    once(task, net, handles, task.calibration[:1])
    return sorted(
        counted, key=lambda layer: called.index(layer) if layer in called else len(called)
    )


def read_by(task: Task, net: nn.Module, layer: Layer) -> Iterator[Float[Tensor, "groups m d"]]:
    """What a layer reads while the calibration inputs run through the network.

    Args:
        task: The task.
        net: A copy of its network.
        layer: One of its layers.

    Yields:
        Batches of rows, one matrix for each group of a convolution; see `rows`.

    Raises:
        InputError: If a value is NaN or infinite.
    """
    seen: list[Tensor] = []
    calls: float = math.inf  # how often a pass calls the layer: the first pass says

    def look(_: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(args[0] if args else kwargs["input"])
        if len(seen) >= calls:
            raise _Enough

    handle = layer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        for batch in task.calibration.split(BATCH):
            with task.observing(net), suppress(_Enough):
                net(batch.to(task.device))
            if not seen:
                return
            for x in seen:
                if not x.isfinite().all():
                    raise InputError(
                        "a layer reads NaN or infinity on the calibration inputs: all values must "
                        "be finite"
                    )
                for part in x.split(max(1, VALUES // rows(layer, x[:1]).numel())):
                    yield rows(layer, part)
            calls = len(seen)
            seen.clear()
    finally:
        handle.remove()


def rows(layer: Layer, x: Tensor) -> Float[Tensor, "groups m d"]:
    """A layer's input as a matrix X with output = X W', W the weight as (outputs, d).

    Args:
        layer: A linear layer, or a convolution with any padding, stride, dilation and groups.
        x: Its input, (*, d), (batch, channels, length) or (batch, channels, height, width).

    Returns:
        The inputs of a linear layer, or the patches that each group of a convolution reads.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    # torch's own list of what is added on each side, also for padding="same"
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    read = patches(x, layer.kernel_size, layer.stride, layer.dilation, layer.groups)
    return read.permute(2, 0, 1, 3).flatten(1, 2)
