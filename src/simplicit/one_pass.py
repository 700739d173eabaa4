"""One pass through the layers of a network: its states, its outputs, and the ω that certify it."""

from dataclasses import replace

import torch
from torch import Tensor

from ._types import Inputs, Outputs, States
from .blockwise import Kept
from .certificate import KAPPA, Certificate
from .equations import Equation, StateEquations
from .equilibrium import Equilibrium, judged
from .structured import BlockOperator, constants

BYTES = 2.0**28
"""Memory that the states of a batch may take while a model predicts; larger batches are split."""


def all_states(equations: StateEquations, u: Inputs) -> States:
    """Compute every state, layer by layer.

    Args:
        equations: The network.
        u: Inputs, flattened.

    Returns:
        x, last hidden layer first.
    """
    states: list[Tensor] = []
    for equation in equations.hidden:
        states.append(equation.phi(equation.preactivation([*states, u])))
    return torch.cat(states[::-1], 1)


def exact(equations: StateEquations, u: Inputs) -> Equilibrium:
    """Solve the equation in one pass, and look at it once more as x = φ(Ax + Bu + b).

    Args:
        equations: The network.
        u: Inputs, flattened.

    Returns:
        The equilibria; steps is the number of layers.
    """
    x = all_states(equations, u)
    with torch.no_grad():
        A, B = BlockOperator(equations, "A"), BlockOperator(equations, "B")
        again = equations.activate(A(x) + B(u) + constants(equations)[0])
    return judged(x, again, u.isfinite().all(1), len(equations.hidden))


def predict(equations: StateEquations, u: Inputs) -> Outputs:
    """Compute the outputs; a state is given up after its last reader, a large batch is split.

    Args:
        equations: The network.
        u: Inputs, flattened.

    Returns:
        y.
    """
    size = max(equation.size + equation.states for equation in equations.hidden)
    last: dict[int, int] = {}
    for index, equation in enumerate(equations.layers):
        last |= dict.fromkeys(equation.sources, index)
    alive = [0] * (len(last) + len(equations.layers))
    for source, end in last.items():
        if source >= 0:
            for index in range(source, end + 1):
                alive[index] += equations.hidden[source].states
    each = (max(alive) + size) * u.element_size()
    samples = max(1, int(BYTES // max(each, 1)))
    return torch.cat([_outputs(equations, part, last) for part in u.split(samples)])


def _outputs(equations: StateEquations, u: Tensor, last: dict[int, int]) -> Tensor:
    states: list[Tensor] = []
    nothing = u.new_empty(len(u), 0)
    for index, equation in enumerate(equations.hidden):
        states.append(equation.phi(equation.preactivation([*states, u])))
        for source, end in last.items():
            if end == index and source >= 0:
                states[source] = nothing
    return equations.output.preactivation([*states, u])


def nilpotence(equations: StateEquations, kappa: float = KAPPA) -> Certificate:
    """Certify a network's equation: every layer reads earlier ones, so A is nilpotent.

    ω = 1 + φ₊(|A| ω) / κ, layer by layer, with φ₊ the factor L of an elementwise φ and the largest
    entry of a window for max-pooling; so ‖A‖∞,ω < κ. An operation that is kept has no known L:
    the equation is well-posed all the same, but the norm is NaN.

    Args:
        equations: The network.
        kappa: Norm to aim at.

    Returns:
        The certificate.
    """
    bound = absolute(equations.changed(_in_double))
    omega: list[Tensor] = []
    worst = torch.zeros((), dtype=torch.float64)
    u = torch.zeros(1, equations.p, dtype=torch.float64)  # inputs are no states
    for equation in bound.hidden:
        if isinstance(equation.phi, Kept):
            whole = torch.ones(equations.n, dtype=torch.float64)
            return Certificate(True, float("nan"), "nilpotent", whole)
        sums = equation.preactivation([*omega, u])
        steep = equation.phi.lipschitz * (
            equation.phi(sums) if equation.phi.name == "max_pool" else sums
        )
        omega.append(1 + steep / kappa)
        worst = torch.maximum(worst, (steep / omega[-1]).max())
    # products and sums of non-negative numbers, rounded outward; a very deep net's ω overflows
    norm = float(worst) * (1 + (equations.n + 8) * torch.finfo(torch.float64).eps)
    weights = torch.cat(omega[::-1], 1)[0]
    return Certificate(True, norm if weights.isfinite().all() else kappa, "nilpotent", weights)


def _in_double(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor


def absolute(equations: StateEquations) -> StateEquations:
    """Take absolute values of all weights and fixed maps, and leave out constants.

    Args:
        equations: The network.

    Returns:
        The same layers with |W|, |F|, |G| and no biases.
    """

    def positive(equation: Equation) -> Equation:
        terms = tuple(
            replace(t, map=t.map.absolute(), fixed=t.fixed and t.fixed.absolute(), offset=None)
            for t in equation.terms
        )
        fixed = tuple(replace(s, map=s.map.absolute()) for s in equation.fixed)
        return replace(equation, terms=terms, fixed=fixed, bias=None)

    hidden = tuple(positive(equation) for equation in equations.hidden)
    return replace(equations, hidden=hidden, output=positive(equations.output))
