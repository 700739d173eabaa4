"""A network's states as what a model of it is trained towards, besides the outputs.

A few outputs a sample leave most of the weights open, and training learns by heart what they leave
open. States are many, and say what each layer is to do. Romero et al., "FitNets" (2015), train
towards one layer of a network, Li et al., "Few Sample Knowledge Distillation" (2020), towards all.
States that a sparse model has given up, as the outputs hardly feel them, would take over the
training: each counts as much as Fisher's information says that the outputs feel it.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from simplicit._types import Inputs, Outputs
from simplicit.capture.read import capture
from simplicit.equations.equation import Equation
from simplicit.equations.forward import all_states, layer_states
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.model.equilibrium import iterated
from simplicit.model.implicit import ImplicitModel

ByLayer = dict[str, Float[Tensor, "m _"]]
"""States of hidden layers, by name."""

AT_ONCE = 2**26
"""States that are computed at once where nothing is trained: 256 MB a copy."""


def samples_at_once(model: ImplicitModel) -> int:
    """Say how many samples are computed at once where nothing is trained.

    Args:
        model: The model.

    Returns:
        At least one.
    """
    return max(1, AT_ONCE // model.n)


def states_and_outputs(model: ImplicitModel, u: Inputs) -> tuple[ByLayer, Outputs]:
    """Compute both in one pass, differentiable in the weights.

    Args:
        model: The model.
        u: Inputs (m, p), see `ImplicitModel.packed`.

    Returns:
        The states and what `ImplicitModel.outputs` returns.

    Raises:
        NotConvergedError: If a sample has no equilibrium.
    """  # noqa: DOC502
    equations = model.equations
    if equations.feedback:
        found = iterated(equations, u, method="anderson")
        found.require_converged()
        states = [found.states]
    else:
        states = layer_states(equations, u)
    x = torch.cat(states[::-1], 1)
    return _by_layer(model, x), equations.output.preactivation([*states, u])


class TeacherStates:
    """The states that a model's are to be.

    Args:
        net: The network that the model came from.
        model: The model. Where it has fewer channels, or units, each of them stands for the one of
            the network that is nearest on the inputs, no two for the same one.
        inputs: Some calibration inputs, (m, *input_shape).
        seed: Of the classes that are drawn, see `felt`.

    Raises:
        InputError: If the network is a model with feedback.
    """

    def __init__(
        self,
        net: nn.Module,
        model: ImplicitModel,
        inputs: Shaped[Tensor, "m *shape"],
        seed: int = 0,
    ) -> None:
        like = model.equations.like

        def taken(t: Tensor) -> Tensor:
            return t.detach().to(like if t.is_floating_point() else like.device)

        made = isinstance(net, ImplicitModel)
        equations = net.equations if made else capture(net, inputs[:2])
        if equations.feedback:
            raise InputError("states: accepted is 0 for a network that is a model with feedback")
        self._equations = equations.changed(taken)
        positions = {e.name: _positions(e) for e in self._equations.hidden}
        parts = model.packed(inputs).split(samples_at_once(model))
        with torch.no_grad():
            wanted, (states, _) = self._wanted(parts[0]), states_and_outputs(model, parts[0])
        found = {
            name: _places(wanted[name], x, positions.get(name))
            for name, x in states.items()
            if name in wanted
        }
        self._places = {name: places for name, places in found.items() if places is not None}
        squares: dict[str, Tensor] = {}
        for k, part in enumerate(parts):
            for name, square in felt(self._equations, part, seed + k).items():
                share = square * (len(part) / len(inputs))
                squares[name] = squares[name] + share if name in squares else share
        self._felt = {
            name: _by_channel(squares[name], positions[name])[places]
            for name, places in self._places.items()
        }

    def distance(self, u: Inputs, states: ByLayer) -> Tensor:
        """Say how far states are from the network's, in terms of the outputs.

        Args:
            u: Inputs, (m, p).
            states: Those of the model there.

        Returns:
            ½ Σ_i F_ii (x_i − t_i)² over the states that both have, a mean over the samples: to
            second order the cross-entropy that errors would cost if they had nothing to do with
            each other. A scalar.
        """
        with torch.no_grad():
            wanted = self._wanted(u)
        total = u.new_zeros(())
        for name, places in self._places.items():
            away = states[name] - wanted[name][:, places]
            total = total + (away.square() @ self._felt[name]).mean() / 2
        return total

    def _wanted(self, u: Inputs) -> ByLayer:
        return _by_layer(self._equations, all_states(self._equations, u))


def felt(equations: StateEquations, u: Inputs, seed: int = 0) -> dict[str, Float[Tensor, " n"]]:
    """Find how much the class probabilities feel of each state.

    Args:
        equations: A network without feedback.
        u: Inputs, (m, p).
        seed: Of the classes, which are drawn as the network predicts them.

    Returns:
        For each hidden layer the diagonal F of Fisher's information, E (∂ log p / ∂x_i)².
    """
    generator = torch.Generator().manual_seed(seed)
    states: list[Tensor] = []
    with torch.enable_grad():
        for equation in equations.hidden:
            x = equation.phi(equation.preactivation([*states, u]))
            states.append(x if x.requires_grad else x.requires_grad_())
        y = equations.output.preactivation([*states, u]).log_softmax(1)
        drawn = torch.multinomial(y.detach().exp().cpu(), 1, generator=generator).to(y.device)
        slopes = torch.autograd.grad(
            y.gather(1, drawn).sum(), states, allow_unused=True, materialize_grads=True
        )
    squares = (slope.square().mean(0) for slope in slopes)
    return {e.name: square for e, square in zip(equations.hidden, squares, strict=True)}


def _by_layer(network: ImplicitModel | StateEquations, x: Tensor) -> ByLayer:
    parts = x.split([block.size for block in network.blocks], 1)
    return {block.name: part for block, part in zip(network.blocks, parts, strict=True)}


# states of one channel; None where it is not known
def _positions(equation: Equation) -> int | None:
    if not equation.terms:
        return None
    first = equation.terms[0].map
    channels = first.rows // first.positions
    return None if equation.states % channels else equation.states // channels


# one number a channel says more than one a state does: there are fewer to estimate
def _by_channel(x: Tensor, positions: int | None) -> Tensor:
    return x.view(-1, positions or 1).mean(1).repeat_interleave(positions or 1)


# which states of the network t those of the model are to be
def _places(t: Tensor, x: Tensor, positions: int | None) -> Int[Tensor, " n"] | slice | None:
    if t.shape == x.shape:
        return slice(None)
    if positions is None or x.shape[1] % positions or x.shape[1] > t.shape[1]:
        return None
    from scipy.optimize import linear_sum_assignment  # reading a configuration need not wait for it

    own, theirs = (
        s.double().unflatten(1, (-1, positions)).transpose(0, 1).flatten(1) for s in (x, t)
    )
    _, channels = linear_sum_assignment(torch.cdist(own, theirs).square().cpu())
    first = torch.from_numpy(channels).to(t.device) * positions
    return (first[:, None] + torch.arange(positions, device=t.device)).flatten()
