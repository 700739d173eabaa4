"""Networks by name, or any class by its import path; their weights."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from simplicit.errors import InputError, did_you_mean
from simplicit.explicit.convnets import LeNet, ResNet20, StagewiseResNet20

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
"""Names of the activations an `fnn` can have."""

CONVOLUTIONAL: dict[str, type[nn.Module]] = {
    "lenet": LeNet,
    "resnet20": ResNet20,
    "resnet20_stagewise": StagewiseResNet20,
}
"""Names of the convolutional networks."""


def build(
    type: str,
    architecture: Sequence[int],
    *,
    bias: bool = False,
    activation: str = "relu",
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Make a network with freshly drawn weights, which returns logits.

    Args:
        type: `fnn`, one of `CONVOLUTIONAL`, or an import path `package.module:Class`; modules in
            the current directory can be imported.
        architecture: Sizes of the layers of an `fnn`, inputs first, logits last. Not used for
            others.
        bias: Whether the layers of an `fnn` have biases.
        activation: What an `fnn` has between them, one of `ACTIVATIONS`.
        arguments: Keyword arguments of the class of another network than an `fnn`.
        seed: Seed of the weights; the global random state is left as it was.

    Returns:
        The network. An import path that cannot be imported, one that makes no `torch.nn.Module`,
        and arguments that the class does not take are an `InputError`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if type == "fnn":
            return _fnn(architecture, bias, ACTIVATIONS[activation])
        make = CONVOLUTIONAL[type] if type in CONVOLUTIONAL else _imported(type)
        return _call(make, type, arguments or {})


def load_weights(net: nn.Module, path: Path) -> None:
    """Fill a network with trained weights; every tensor must be there, and no other.

    Args:
        net: The network, changed in place.
        path: A `.safetensors` file with the names of the network's `state_dict`.

    Raises:
        InputError: If the file is missing or damaged, does not fit, or holds NaN or infinity.
    """
    try:
        missing, unexpected = load_model(net, path, strict=False)
    except FileNotFoundError as error:
        raise InputError(f"weights {path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"weights {path}: not a readable safetensors file ({error})") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"weights {path} do not fit the network: {reason}") from error
    if missing or unexpected:
        parts = [
            f"{what} {', '.join(sorted(names))}"
            for what, names in (("missing", missing), ("not in the network", unexpected))
            if names
        ]
        raise InputError(f"weights {path} do not fit the network: {'; '.join(parts)}")
    for name, tensor in net.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"weights {path}: {name} holds NaN or infinity")


def _fnn(architecture: Sequence[int], bias: bool, phi: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(architecture):
        layers += [nn.Linear(inputs, outputs, bias=bias), phi()]
    return nn.Sequential(*layers[:-1])


def _imported(path: str) -> Callable[..., Any]:
    # a class, or any function that returns a network
    module_name, _, name = path.partition(":")
    # a console script, unlike `python -m`, does not look for modules where it is started
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise InputError(
            f"explicit type {path!r}: cannot import {module_name} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    if not hasattr(module, name):
        classes = [key for key, value in vars(module).items() if _is_network_class(value)]
        raise InputError(
            f"explicit type {path!r}: {module_name} has no {name}; {did_you_mean(name, classes)}"
        )
    return getattr(module, name)


def _call(make: Callable[..., Any], type: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        net = make(**arguments)
    except Exception as error:
        raise InputError(
            f"explicit type {type!r}: cannot be made with arguments {dict(arguments)} "
            f"({first_line(error)})"
        ) from error
    if not isinstance(net, nn.Module):
        raise InputError(
            f"explicit type {type!r} makes a {net.__class__.__name__}; expected is a "
            "torch.nn.Module"
        )
    return net


def _is_network_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module)


def first_line(error: Exception) -> str:
    """What an exception says, cut to one line; its type where it says nothing.

    Args:
        error: Any exception.

    Returns:
        The line.
    """
    return (str(error) or type(error).__name__).splitlines()[0]
