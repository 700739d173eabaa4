"""Networks for the tests of capture: every construct that is read, and every one refused."""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations


class Net(nn.Module):
    """A module whose forward is a function of itself and the input."""

    mean: Tensor
    calls: Tensor
    steps = 0

    def __init__(self, forward: Callable[["Net", Tensor], object], *layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        self.layers = nn.ModuleList(layers)
        self.matrix = nn.Parameter(torch.randn(6, 4))
        self.shift = nn.Parameter(torch.randn(4))
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build in float64 with random, non-trivial batch norm statistics."""
    torch.manual_seed(seed)
    net = make().double()
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.ndim == 1:
                    nn.init.uniform_(tensor, 0.5, 2.0)
    return net


def mlp(*phis: nn.Module, bias: bool = True) -> nn.Module:
    sizes = [6, 5, 4, 7][: len(phis) + 1]
    layers: list[nn.Module] = []
    for phi, rows, columns in zip(phis, sizes[1:], sizes[:-1], strict=True):
        layers += [nn.Linear(columns, rows, bias=bias), phi]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 3, bias=bias))


def _tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    net[4].weight = net[0].weight
    return net


def _counting(net: Net, x: Tensor) -> Tensor:
    net.calls += 1
    net.steps = net.steps + 1
    return net.layers[1](torch.relu(net.layers[0](x)))


def _without_grad(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = net.layers[0](x)
    return net.layers[1](torch.relu(x))


def _residual(net: Net, x: Tensor) -> Tensor:
    first, second, third = net.layers
    h = torch.relu(first(x))
    h = torch.tanh(h + second(h) - 0.5 * x)
    return third(h) + x


CAPTURED: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: mlp(nn.ReLU(), nn.ReLU(), nn.ReLU()),
    "no bias": lambda: mlp(nn.ReLU(), nn.ReLU(), bias=False),
    "relu in place": lambda: mlp(nn.ReLU(inplace=True), nn.ReLU(inplace=True)),
    "leaky relu": lambda: mlp(nn.LeakyReLU(), nn.LeakyReLU(0.3), nn.LeakyReLU(0.2, inplace=True)),
    "tanh, sigmoid": lambda: mlp(nn.Tanh(), nn.Sigmoid()),
    "dropout, identity": lambda: mlp(nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Identity())),
    "linear after linear": lambda: mlp(nn.Identity(), nn.ReLU(), nn.Identity()),
    "functional in place": lambda: Net(
        lambda s, x: s.layers[1](F.relu_(s.layers[0](x).mul_(2.0).add_(1.0))),
        nn.Linear(6, 5),
        nn.Linear(5, 3),
    ),
    "functional": lambda: Net(
        lambda s, x: s.layers[1](F.dropout(F.leaky_relu(s.layers[0](x), 0.2), training=s.training)),
        nn.Linear(6, 5),
        nn.Linear(5, 3),
    ),
    "shared": lambda: Net(
        lambda s, x: s.layers[1](s.layers[0](s.layers[0](x).relu()).relu()),
        nn.Linear(6, 6),
        nn.Linear(6, 3),
    ),
    "tied": _tied,
    "matmul, constants": lambda: Net(
        lambda s, x: 2 * (torch.sigmoid((x / 3 - s.mean) @ s.matrix + s.shift) @ s.matrix.T) + 1
    ),
    "reshapes": lambda: Net(
        lambda s, x: s.layers[1](
            torch.relu(s.layers[0](x.view(x.size(0), -1).to(x.dtype).detach()))
            .reshape(-1, 2, 2)
            .unsqueeze(1)
            .squeeze(1)
            .contiguous()
            .flatten(1)
        ),
        nn.Linear(6, 4),
        nn.Linear(4, 3),
    ),
    "batch norm": lambda: nn.Sequential(
        nn.BatchNorm1d(6),
        nn.Linear(6, 5),
        nn.BatchNorm1d(5, affine=False),
        nn.ReLU(),
        nn.BatchNorm1d(5),
        nn.Linear(5, 3),
        nn.BatchNorm1d(3),
    ),
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3)
    ),
    "activation first": lambda: nn.Sequential(nn.Tanh(), nn.Linear(6, 3)),
    "residual": lambda: Net(_residual, nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)),
    "state of its own": lambda: Net(_counting, nn.Linear(6, 5), nn.Linear(5, 3)),
    "no_grad inside": lambda: Net(_without_grad, nn.Linear(6, 5), nn.Linear(5, 3)),
    "dict": lambda: Net(
        lambda s, x: {"logits": s.layers[1](torch.relu(s.layers[0](x))), "loss": None},
        nn.Linear(6, 5),
        nn.Linear(5, 3),
    ),
    "unused head": lambda: Net(
        lambda s, x: (s.layers[1](F.gelu(x)), s.layers[1](torch.relu(s.layers[0](x))))[1],
        nn.Linear(6, 6),
        nn.Linear(6, 3),
    ),
    "gelu, silu, relu6": lambda: mlp(nn.GELU(), nn.SiLU(), nn.ReLU6()),
    "gelu, approximately": lambda: mlp(nn.GELU("tanh"), nn.Sigmoid()),
    "concatenation": lambda: Net(
        lambda s, x: s.layers[1](torch.cat([x, s.layers[0](x).relu(), x / 2], 1)),
        nn.Linear(6, 5),
        nn.Linear(17, 3),
    ),
    "broadcast": lambda: Net(lambda s, x: x + s.layers[0](x.relu()), nn.Linear(6, 1)),
    "zeros of the batch's size": lambda: Net(
        lambda s, x: s.layers[0](x.relu()) + torch.ones(x.shape[0], 3), nn.Linear(6, 3)
    ),
    "changes its input": lambda: Net(lambda s, x: s.layers[0](x.mul_(2).relu_()), nn.Linear(6, 3)),
}
"""Networks on samples of shape (6,) that are read."""


def example(samples: int = 8) -> Tensor:
    return torch.randn(samples, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def sequential(name: str) -> nn.Sequential:
    net = seeded(CAPTURED[name])
    assert isinstance(net, nn.Sequential)
    return net


@cache
def captured(name: str) -> StateEquations:
    """What is read from `seeded(CAPTURED[name])`; kept, since reading takes a while."""
    return capture(seeded(CAPTURED[name]), example())


def _data_dependent(net: Net, x: Tensor) -> Tensor:
    return net.layers[0](x.relu() if x.sum() > 0 else x)


def _pruned() -> nn.Module:
    net = mlp(nn.ReLU()).double()
    prune.l1_unstructured(net.get_submodule("0"), "weight", 3)
    return net


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch statistics": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False)),
        "'1': batch_norm uses statistics of the batch; .* in evaluation mode",
    ),
    "dropout that stays on": (
        lambda: Net(lambda s, x: F.dropout(s.layers[0](x)), nn.Linear(6, 3)),
        "dropout is random",
    ),
    "randomness": (
        lambda: Net(lambda s, x: s.layers[0](x.relu()) + torch.randn(3), nn.Linear(6, 3)),
        "randn is random",
    ),
    "batch mixed": (
        lambda: Net(lambda s, x: s.layers[0](x.view(-1, 3).relu()), nn.Linear(3, 3)),
        "outputs mix samples",
    ),
    "batch size of the example": (
        lambda: Net(lambda s, x: s.layers[0](x.view(8, 6).relu()), nn.Linear(6, 3)),
        r"fixes the batch size to 8: .*x\.flatten",
    ),
    "size of the batch in a branch": (
        lambda: Net(lambda s, x: s.layers[0](x.relu() if x.shape[0] > 5 else x), nn.Linear(6, 3)),
        "depends on the batch size",
    ),
    "size of a small batch in a branch": (
        lambda: Net(lambda s, x: s.layers[0](x.relu() if x.shape[0] < 99 else x), nn.Linear(6, 3)),
        "depends on the batch size",
    ),
    "data-dependent branch": (lambda: Net(_data_dependent, nn.Linear(6, 3)), "depend on the data"),
    "no hidden layer": (lambda: nn.Linear(6, 3), "no hidden layer"),
    "text beside the outputs": (
        lambda: Net(lambda s, x: (s.layers[0](x.relu()), "text"), nn.Linear(6, 3)),
        "returns a str as 1: accepted are tensors",
    ),
    "classes": (
        lambda: Net(lambda s, x: s.layers[0](x.relu()).argmax(1), nn.Linear(6, 3)),
        "dtype torch.int64: accepted are floating-point .* logits",
    ),
    "constant output": (lambda: Net(lambda s, x: s.shift * 2), "does not depend on its input"),
    "two inputs": (lambda: nn.Bilinear(6, 6, 3), r"does not run on inputs \(m, 6\)"),
    "another width": (lambda: nn.Linear(5, 3), r"does not run on inputs \(m, 6\)"),
    "old-style pruning": (_pruned, "cannot be copied .* made permanent"),
}
"""Networks on samples of shape (6,) that are not, and what the error says."""
