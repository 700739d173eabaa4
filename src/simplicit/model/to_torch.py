"""A model without feedback as plain torch modules.

The result consists of torch's parts alone, so it can be saved, exported and run where simplicit is
not installed. `torch.save` of an `fx.GraphModule` stores its readable `code`; `to_folder` writes it
as a Python package.
"""

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from simplicit.capture.outputs import tensors_of
from simplicit.equations.interface import called
from simplicit.equations.network import Equation, StateEquations
from simplicit.equations.phi import Phi
from simplicit.errors import InputError
from simplicit.model.into_network import CLOSE, apart, outputs_of, some_inputs
from simplicit.model.module_graph import Writer, activation, plain


def as_modules(equations: StateEquations) -> nn.Sequential | fx.GraphModule:
    """Write a network as torch's own modules, without the terms that are all zero.

    Args:
        equations: The network.

    Returns:
        A module with the same outputs that does not need simplicit: an `nn.Sequential` if every
        layer is a matrix that reads the one before it, otherwise a graph. In it a layer that reads
        several states with matrices is one `nn.Linear`, over their concatenation.

    Raises:
        InputError: If an operation that is kept as it is does not work on a batch.
    """
    equations = _without_zeros(equations)
    if _is_chain(equations):
        return _sequential(equations)
    writer = Writer(equations)
    module = fx.GraphModule(writer.attributes, writer.graph).to(equations.like)
    if equations.kept:
        u = some_inputs(equations).to(equations.like)
        with torch.no_grad():
            expected = outputs_of(equations, u)
            try:
                found = list(tensors_of(called(module, equations.inputs, u)).values())
            except Exception:
                found = []
        if not apart(found, expected) <= CLOSE:
            raise InputError(
                f"to_explicit: of {', '.join(equations.kept)} some work on single samples only; "
                "accepted is load_into, which writes the weights into the network's own class"
            )
    if equations.interface is not None and equations.interface.dtype:
        return module.to(getattr(torch, equations.interface.dtype))
    return module


# a layer of zeros is still a layer, of its first term
def _without_zeros(equations: StateEquations) -> StateEquations:
    def used(e: Equation) -> Equation:
        terms = tuple(term for term in e.terms if term.weight.any())
        # the bias by channel is that of the first term
        return replace(e, terms=terms or e.terms[:1], bias=e.full_bias)

    hidden = tuple(used(e) for e in equations.hidden)
    return replace(equations, hidden=hidden, output=used(equations.output))


def _is_chain(equations: StateEquations) -> bool:
    if equations.interface is not None or any("." in e.name for e in equations.layers):
        return False  # modules of a sequence have names without dots
    return all(
        isinstance(e.phi, Phi)
        and e.sources == (k - 1,)
        and len(e.terms) == 1
        and not e.fixed
        and plain(e.terms[0])
        for k, e in enumerate(equations.layers)
    )


def _sequential(equations: StateEquations) -> nn.Sequential:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    if len(equations.input_shape) > 1:
        modules["flatten"] = nn.Flatten()
    weights: dict[int, nn.Parameter] = {}
    for e in equations.layers:
        term = e.terms[0]
        linear: Any = term.map.to_module(e.full_bias)
        linear.weight = weights.setdefault(id(term.weight), linear.weight)
        modules[e.name] = linear
        if e is not equations.output:
            modules[f"{e.name}_phi"] = activation(e.phi)
    return nn.Sequential(modules)
