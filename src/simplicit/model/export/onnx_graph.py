"""A network without feedback as an ONNX graph: torch's exporter on the modules of `to_explicit`."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch

from simplicit.equations.interface import parted
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.model.into_network import some_inputs
from simplicit.model.to_torch import as_modules
from simplicit.system.extras import package


def input_names(equations: StateEquations) -> list[str]:
    """Name inputs.

    Args:
        equations: The network.

    Returns:
        Their own names; for those passed by position `input`, or `input_0` and so on.
    """
    single = len(equations.inputs) == 1
    return [i.name or ("input" if single else f"input_{k}") for k, i in enumerate(equations.inputs)]


def output_names(equations: StateEquations) -> list[str]:
    """Name outputs.

    Args:
        equations: The network.

    Returns:
        Their keys, `output_0` and so on for numbers; `output` for one tensor. No input has the
        same name.
    """
    interface, taken = equations.interface, input_names(equations)
    names = [""] if interface is None else [output.name for output in interface.outputs]
    names = [f"output_{name}" if name.isdigit() else name or "output" for name in names]
    return [f"{name}_output" if name in taken else name for name in names]


def traced(equations: StateEquations) -> Any:
    """Write a network without feedback.

    Args:
        equations: The network, on the processor.

    Returns:
        The `onnx.ModelProto`; the first axis of inputs and outputs has any length.

    Raises:
        InputError: If an operation has no ONNX form.
    """
    package("onnxscript")
    module = as_modules(equations).eval().requires_grad_(False)
    u = some_inputs(equations).to(equations.like)
    # views of u would have the strides of u in the graph
    given = tuple(part.contiguous() for part in parted(equations.inputs, u))
    batch = torch.export.Dim("batch")
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                module,
                given,
                dynamo=True,
                verbose=False,
                dynamic_shapes={name: {0: batch} for name in signature(module.forward).parameters},
                input_names=input_names(equations),
                output_names=output_names(equations),
            )
    except Exception as error:  # the exporter's own, and whatever its parts raise
        raise InputError(
            f"to_onnx: {_reason(error)}; accepted is to_explicit(), which torch.export takes"
        ) from None
    model = program.model_proto
    _forget_sources(model.graph)
    for function in model.functions:
        _forget_sources(function)
    return model


# the exporter warns of packages that it could use, and of its own insides
@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    if missing := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error)):
        return f"{missing[1]} has no ONNX form"
    lines = str(error).strip().splitlines()
    return f"torch.onnx cannot write this network ({lines[0] if lines else type(error).__name__})"


# where in which file of this machine an operation came from
def _forget_sources(graph: Any) -> None:
    graph.ClearField("metadata_props")
    for node in graph.node:
        node.ClearField("metadata_props")
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _forget_sources(attribute.g)
    for value in (*getattr(graph, "input", ()), *getattr(graph, "output", ())):
        if hasattr(value, "ClearField"):  # inputs of functions are names
            value.ClearField("metadata_props")
    for value in graph.value_info:
        value.ClearField("metadata_props")
