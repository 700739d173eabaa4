"""One pass through the layers of a network: its states, its outputs."""

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit._types import Inputs, Outputs, States
from simplicit.equations.network import StateEquations

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
    return torch.cat(layer_states(equations, u)[::-1], 1)


def layer_states(equations: StateEquations, u: Inputs) -> list[Float[Tensor, "m _"]]:
    """Compute the states of each layer.

    Args:
        equations: A network without feedback.
        u: Inputs, flattened.

    Returns:
        Those of each hidden layer, the first first: with u behind them what the output reads.
    """
    states: list[Tensor] = []
    for equation in equations.hidden:
        states.append(equation.phi(equation.preactivation([*states, u])))
    return states


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
