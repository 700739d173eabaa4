"""Layers that are skipped: their weights are in no row, and stay as they are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from jaxtyping import Float
from torch import Tensor

from simplicit.equations.equation import Equation
from simplicit.equations.layer_phi import Kept
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError, did_you_mean

Place = tuple[int, int]
"""A term: the index of its equation, and its own."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight that stays as it is.

    Attributes:
        index: The equation that it is in.
        name: Its layer's: that of the equation, or its own where the equation adds up several.
        weight: The weight.
    """

    index: int
    name: str
    weight: Float[Tensor, "channels reads *kernel"]


def skipped(equations: StateEquations, patterns: Sequence[str]) -> dict[Place, Layer]:
    """Find the layers that patterns name.

    A weight that a skipped layer shares with others is skipped in all of them, and so is one that
    is also a table of an embedding: it would no longer be that table.

    Args:
        equations: The network, in the structure that is solved.
        patterns: Glob patterns of module paths.

    Returns:
        Their terms, first equation first.

    Raises:
        InputError: If a pattern names no layer, or no layer is left to match.
    """
    layers = equations.layers
    tables = {name for e in equations.hidden if isinstance(e.phi, Kept) for name in e.phi.names}
    tables -= {""}
    if not patterns and not tables:
        return {}
    every = [(i, t) for i, e in enumerate(layers) for t in range(len(e.terms))]
    names = {place: tuple(_names(layers[place[0]], place[1])) for place in every}
    known = list(dict.fromkeys(name for place in every for name in names[place]))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise InputError(
                f"skip: no layer is called {pattern!r}: {did_you_mean(pattern, known)}"
            )
    found = {p for p in every if any(fnmatchcase(n, g) for n in names[p] for g in patterns)}
    shared = {layers[i].terms[t].parameter for i, t in found} - {""} | tables
    found |= {(i, t) for i, t in every if layers[i].terms[t].parameter in shared}
    if not patterns and len(found) == len(every):
        raise InputError(
            "every weight is a table of an embedding, too, and stays as it is: accepted is a "
            "network with a layer to match"
        )
    if len(found) == len(every):
        raise InputError(
            f"skip={tuple(patterns)}: accepted are patterns that leave a layer to match"
        )
    return {
        (i, t): Layer(i, layers[i].name if t == 0 else names[i, t][0], layers[i].terms[t].weight)
        for i, t in sorted(found)
    }


def weights(layers: Mapping[Place, Layer]) -> dict[str, int]:
    """Count the weights that stay as they are; a shared one counts at the first layer.

    Args:
        layers: What `skipped` has found.

    Returns:
        Name of each layer -> its non-zero weights.
    """
    found: dict[str, int] = {}
    seen: set[int] = set()
    for layer in layers.values():
        new = 0 if id(layer.weight) in seen else int(layer.weight.count_nonzero())
        found[layer.name] = found.get(layer.name, 0) + new
        seen.add(id(layer.weight))
    return found


# the parameter's module; the equation's, if the term is its first one or the weight no parameter
def _names(equation: Equation, t: int) -> Iterator[str]:
    path = equation.terms[t].parameter
    if path:
        yield path.rpartition(".")[0] or path
    if t == 0 or not path:
        yield equation.name.split("@")[0]
