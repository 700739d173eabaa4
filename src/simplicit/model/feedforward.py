"""A model with strictly block upper triangular A, written as an ordinary feed-forward module.

The result consists of torch.nn parts alone, so it can be saved, exported and run where simplicit is
not installed. `torch.save` of an `fx.GraphModule` stores its readable `code`; `to_folder` writes it
as a Python package.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from simplicit.equations.layer_phi import StatePhi
from simplicit.equations.phi import Phi
from simplicit.model.equilibrium import Block


def feedforward(
    AB: Float[Tensor, "n columns"],
    CD: Float[Tensor, "q columns"],
    b: Float[Tensor, "n"] | None,
    d: Float[Tensor, "q"] | None,
    blocks: Sequence[Block],
    input_shape: tuple[int, ...],
) -> nn.Sequential | fx.GraphModule:
    """Build one `nn.Linear` per layer over the states and inputs it really uses.

    Args:
        AB: [A B], A strictly block upper triangular.
        CD: [C D].
        b: Bias of the states, or None.
        d: Bias of the outputs, or None.
        blocks: Layers in the order of x, last hidden layer first.
        input_shape: Shape of one sample.

    Returns:
        An `nn.Sequential` if every layer uses only the one before it, otherwise an
        `fx.GraphModule` that concatenates what each layer uses.
    """
    bounds = [0, *accumulate(block.size for block in blocks)]
    # Columns of [A B]: one slice per block, then the input, which plays the part of layer 0.
    columns = [slice(*pair) for pair in zip(bounds, [*bounds[1:], AB.shape[1]], strict=True)]
    rows = [(AB[s], None if b is None else b[s]) for s in columns[:-1]]
    layers: list[tuple[nn.Linear, list[int]]] = []
    for i, (weight, bias) in enumerate([(CD, d), *rows]):
        # Layer i (the output first) may use the blocks from i on and the input.
        used = [j for j in range(i, len(columns)) if weight[:, columns[j]].any()] or [i]
        layers.append((_linear(torch.cat([weight[:, columns[j]] for j in used], 1), bias), used))
    if all(used == [i] for i, (_, used) in enumerate(layers)):
        return _sequential([linear for linear, _ in layers], blocks, input_shape)
    return _graph(layers, blocks)


def _sequential(
    linears: list[nn.Linear], blocks: Sequence[Block], input_shape: tuple[int, ...]
) -> nn.Sequential:
    modules: list[nn.Module] = [] if len(input_shape) == 1 else [nn.Flatten()]
    for linear, block in zip(reversed(linears[1:]), reversed(blocks), strict=True):
        modules += [linear, activation(block.phi)]
    return nn.Sequential(*modules, linears[0])


def _graph(layers: list[tuple[nn.Linear, list[int]]], blocks: Sequence[Block]) -> fx.GraphModule:
    graph, modules = fx.Graph(), {}

    def apply(name: str, module: nn.Module, argument: fx.Node) -> fx.Node:
        modules[name] = module
        return graph.call_module(name, (argument,))

    u = graph.call_function(torch.flatten, (graph.placeholder("input"), 1))
    nodes = {len(blocks): u}  # in the numbering of `used`
    for i in reversed(range(len(layers))):
        linear, used = layers[i]
        sources = [nodes[j] for j in used]
        joined = sources[0] if len(sources) == 1 else graph.call_function(torch.cat, (sources, 1))
        if i == 0:
            graph.output(apply("output_layer", linear, joined))
        else:
            depth = len(layers) - i
            z = apply(f"layer{depth}", linear, joined)
            nodes[i - 1] = apply(f"phi{depth}", activation(blocks[i - 1].phi), z)
    return fx.GraphModule(modules, graph)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    rows, columns = weight.shape
    # On the meta device the weights are not initialised, so no random numbers are consumed.
    linear = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight)
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias.clone()))
    return linear


def activation(phi: StatePhi) -> nn.Module:
    """Find the torch module of an elementwise φ.

    Args:
        phi: φ.

    Returns:
        The module.
    """
    assert isinstance(phi, Phi)
    match phi.name:
        case "relu":
            return nn.ReLU()
        case "leaky_relu":
            return nn.LeakyReLU(phi.slope)
        case "relu6":
            return nn.ReLU6()
        case "silu":
            return nn.SiLU()
        case "gelu":
            return nn.GELU()
        case "gelu_tanh":
            return nn.GELU("tanh")
        case "tanh":
            return nn.Tanh()
        case "sigmoid":
            return nn.Sigmoid()
        case "identity":
            return nn.Identity()
