"""simplicit.compile: a model whose zeros take no time."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simplicit._types import Inputs, Outputs
from simplicit.equations.compose import identity
from simplicit.equations.equation import Equation, Summand, Term
from simplicit.equations.interface import plain
from simplicit.equations.network import StateEquations
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Gather
from simplicit.errors import InputError
from simplicit.model.equilibrium import WARM_UP
from simplicit.model.fixed_point import anderson
from simplicit.model.implicit import ImplicitModel
from simplicit.runtime.engine import Engine
from simplicit.runtime.lower import lowered


def compile(model: ImplicitModel, batch: int = 64, threads: int | None = None) -> "CompiledModel":
    """Compile a model for this machine's processor.

    Layers, convolutions, shortcuts and pooling become lists of non-zeros that one kernel runs;
    operations that are kept run by torch in between.

    Args:
        model: The model; its weights are copied, so that later changes do not count.
        batch: Samples that calls usually have; what is fastest for them is measured. Any number
            may be given later.
        threads: Most threads to use, by default those of torch.

    Returns:
        A function of the same inputs and outputs.

    Raises:
        InputError: If the model is on another device, or an argument is none that is accepted.

    Example:
        >>> import simplicit, torch
        >>> from torch import nn
        >>> u, net = torch.randn(99, 8), nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 3))
        >>> model = simplicit.implicitize(net, u, sparsity=0.5)
        >>> fast = simplicit.compile(model)
        >>> torch.allclose(fast(u), model(u), atol=1e-6)
        True
    """
    if not isinstance(model, ImplicitModel):
        raise InputError(
            f"compile of a {type(model).__name__}: accepted are models of simplicit.implicitize or "
            "simplicit.load"
        )
    for name, value in (("batch", batch), ("threads", threads)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and value > 0):
            raise InputError(f"{name} {value!r}: accepted are whole numbers from 1")
    device = model.equations.like.device
    if device.type != "cpu":
        raise InputError(f"compile of a model on {device}: accepted are models on cpu")
    threads = torch.get_num_threads() if threads is None else threads
    equations, dtype = model.equations, model.equations.like.dtype
    parts = _parts(equations) if equations.feedback else [equations]
    with torch.no_grad():
        engines = [Engine(lowered(part), dtype, batch, threads) for part in parts]
    return CompiledModel(model, engines)


class CompiledModel:
    """A compiled model: call it as the model is called; see `compile`.

    Samples whose inputs or outputs are not finite are given to the model itself, and come out, or
    raise `NotConvergedError`, as they do there.

    Args:
        model: The model.
        engines: Of its one pass; or of Bu + b, of φ(Ax + c) and of the outputs, for a `full` one.
    """

    def __init__(self, model: ImplicitModel, engines: Sequence[Any]) -> None:
        self.model, self.engines = model, tuple(engines)
        equations = model.equations
        self._dtype = equations.like.dtype
        self._shape = tuple(equations.inputs[0].shape)
        self._plain = plain(equations.inputs)
        # u as it is, and y: the interface of most networks, without the time of asking
        interface = equations.interface
        self._interface = None if interface is None or interface.plain else interface

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Predict.

        Args:
            *inputs: Inputs as the model takes them, tensors or arrays, of any number of samples.
            **named: Those that it takes by name.

        Returns:
            What the model returns; NumPy arrays if all inputs are.

        Raises:
            InputError: On inputs that the model does not take, or that want a gradient.
        """
        x = inputs[0] if len(inputs) == 1 and not named else None
        if isinstance(x, Tensor) and self._plain and self._fits(x):
            u = x.flatten(1).contiguous()
        else:
            u = self.model.packed(*inputs, **named).contiguous()
        if u.requires_grad:
            if torch.is_grad_enabled():
                raise InputError(
                    "inputs that require a gradient: a compiled model has none; accepted are calls "
                    "within torch.no_grad(), or the model itself"
                )
            u = u.detach()
        y = self.outputs(u)
        result = y if self._interface is None else self._interface.returned(y)
        if isinstance(x, Tensor):
            return result
        given = [*inputs, *named.values()]
        return _as_arrays(result) if given and all(map(_is_array, given)) else result

    def _fits(self, x: Tensor) -> bool:
        same = x.dtype == self._dtype and x.shape[1:] == self._shape
        return same and x.device.type == "cpu"

    def outputs(self, u: Inputs) -> Outputs:
        """Predict what stands before the activations that outputs end in.

        Args:
            u: Inputs (m, p).

        Returns:
            y (m, q).
        """
        engine, *others = self.engines
        if others:
            return self._settled(u)
        y, finite = engine(u)
        if not finite:
            bad = ~(u.isfinite().all(1) & y.isfinite().all(1))
            with torch.no_grad():
                y[bad] = self.model.outputs(u[bad])
        return y

    # the fixed point, by the same iteration as the model's
    @torch.no_grad()
    def _settled(self, u: Tensor) -> Tensor:
        given, step, output = self.engines
        c, finite = given(u)
        if not finite:  # also where no weight reads an input
            c[~u.isfinite().all(1)] = torch.nan
        found = anderson(
            lambda x, c: step(torch.cat([x, c], 1))[0], torch.zeros_like(c), c, warm_up=WARM_UP
        )
        found.require_converged()
        return output(torch.cat([found.states, u], 1))[0]

    @property
    def bytes(self) -> int:
        """Memory of the states and of the lists of non-zeros."""
        return sum(engine.bytes for engine in self.engines)

    def __repr__(self) -> str:
        """Say what was chosen.

        Returns:
            A line.
        """
        engine = self.engines[len(self.engines) // 2]
        dense = ", ".join(engine.dense) or "none"
        return (
            f"CompiledModel({self.model.extra_repr()}; {engine.part} samples at a time, "
            f"{engine.threads} threads; dense: {dense})"
        )


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _as_arrays(result: Any) -> Any:
    if isinstance(result, dict):
        return {name: part.numpy() for name, part in result.items()}
    if isinstance(result, tuple):
        return tuple(part.numpy() for part in result)
    return result.numpy()


# c = Bu + b; x = φ(Ax + c); y = Cx + Du + d: each without feedback
def _parts(equations: StateEquations) -> list[StateEquations]:
    if len(equations.hidden) != 1:
        raise InputError("compile: accepted is feedback in one equation, structure 'full'")
    (state,), output = equations.hidden, equations.output
    n, p, count = equations.n, equations.p, equations.nonzeros

    def moved(equation: Equation, source: int, before: int, size: int, of: int) -> tuple[Term, ...]:
        place = Gather(torch.arange(before, before + size), of)
        if any(term.fixed is not None for term in equation.terms) or equation.fixed:
            raise InputError("compile: accepted are matrices A, B, C and D")
        read = (term for term in equation.terms if term.source == source)
        return tuple(replace(term, source=-1, fixed=place) for term in read)

    none = Phi("identity")
    given = Equation(state.name, moved(state, -1, 0, p, p), state.bias, none)
    own = Summand(-1, Gather(torch.arange(n, 2 * n), 2 * n))
    step = Equation(state.name, moved(state, 0, 0, n, 2 * n), None, state.phi, (own,))
    result = Equation("x", (), None, none, (Summand(0, identity(n)),))
    read = moved(output, 0, 0, n, n + p) + moved(output, -1, n, p, n + p)
    return [
        StateEquations((), given, (p,), count),
        StateEquations((step,), result, (2 * n,), count),
        StateEquations((), replace(output, terms=read), (n + p,), count),
    ]
