"""Networks of convolutions, shortcuts and attention, as people write them, for the tests."""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from example_networks import Net, seeded
from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.equations.operators import with_weights
from simplicit.explicit.convnets import Block, Subsample
from simplicit.model.implicit import ImplicitModel


class ResNet20(nn.Module):
    """`convnets.ResNet20` in any size, without normalisation."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, width: int = 16, blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        sizes = [width, width, 2 * width, 4 * width]
        for stage in (1, 2, 3):
            inside, outside = sizes[stage - 1 : stage + 1]
            shortcut = Subsample(outside - inside) if stage > 1 else nn.Identity()
            first = Block(inside, outside, 1 if stage == 1 else 2, shortcut, F.relu)
            rest = [Block(outside, outside, 1, nn.Identity(), F.relu) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


class Stages(nn.Module):
    """`convnets.StagewiseResNet20` in any size, without normalisation."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self, width: int = 16, blocks: int = 3, stem: int = 64, classes: int = 100
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        sizes = [stem, width, 2 * width, 4 * width]
        for stage in (1, 2, 3):
            inside, outside = sizes[stage - 1 : stage + 1]
            stride = 1 if stage == 1 else 2
            first = Block(inside, outside, stride, nn.Identity(), None)
            first.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )
            rest = [Block(outside, outside, 1, nn.Identity(), None) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(16 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3):
            x = self.relu(layer(x))
        x = F.avg_pool2d(x, x.shape[-1] // 2)
        return self.linear(torch.flatten(x, 1))


class Attention(nn.Module):
    """A block of self-attention as in transformers, pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        m, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(m, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(m, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches of an image, a class token, positions, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 5, 8))
        self.blocks = nn.ModuleList([Attention(8, 2)])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class MatrixPerChannel(nn.Module):
    """Every channel has a matrix of its own: a product that is kept as it is, with weights."""

    def __init__(self, channels: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :, None] @ self.weight).squeeze(2)


def lenet(channels: int = 1, side: int = 12) -> nn.Module:
    flat = 6 * ((side - 4) // 2 - 2) ** 2
    return nn.Sequential(
        *(nn.Conv2d(channels, 4, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3), nn.Tanh(), nn.Flatten()),
        *(nn.Linear(flat, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 4)),
    )


def _functional(net: Net, x: Tensor) -> Tensor:
    first, second, last = net.layers
    x = F.max_pool2d(F.relu(first(x)), 3, 2, 1)
    x = F.relu_(second(x))
    return last(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _reused(net: Net, x: Tensor) -> Tensor:
    relu, first, norm, second, last = net.layers
    x = relu(norm(first(x)))
    x = relu(second(x) + x)
    return last(x.mean((2, 3)))


def _dense_block(net: Net, x: Tensor) -> Tensor:
    first, second, third, last = net.layers
    a = F.relu(first(x))
    b = F.relu(second(torch.cat([x, a], 1)))
    c = F.silu(third(torch.cat([x, a, b], 1)))
    return last(torch.cat([a, c], 1).flatten(1))


def _split(net: Net, x: Tensor) -> Tensor:
    first, second, last = net.layers
    left, right = first(x).chunk(2, 1)
    x = torch.cat([F.relu(left), second(F.relu(-right)) - left], 1)
    x = x.view(x.size(0), 2, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2)  # channels shuffled
    return last(x.flip(3)[..., 1:, :].flatten(1))


def _sequence(net: Net, x: Tensor) -> Tensor:
    first, second, last = net.layers
    x = F.leaky_relu(first(x.flatten(2)), 0.1)
    return last(F.avg_pool1d(F.relu6(second(x)), 3, 2, 1).flatten(1))


def _encoder() -> nn.Module:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
    return nn.Sequential(nn.Flatten(2), nn.Linear(36, 8), encoder, nn.Flatten(), nn.Linear(24, 4))


def _recurrent(net: Net, x: Tensor) -> Tensor:
    state = torch.zeros(x.shape[0], 5, dtype=x.dtype)
    for part in x.flatten(2).unbind(1):
        state = torch.tanh(net.layers[0](part) + net.layers[1](state))
    return net.layers[2](state)


SHAPE = (3, 6, 6)

CONVOLUTIONAL: dict[str, Callable[[], nn.Module]] = {
    "resnet, option A": lambda: ResNet20(4, 2, 5),
    "resnet, shortcut convolutions": lambda: Stages(4, 2, 6, 5),
    "lenet": lambda: nn.Sequential(nn.Upsample(size=(12, 12)), lenet(3)),
    "functional": lambda: Net(
        _functional, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 2), nn.Linear(5, 4)
    ),
    "in place, reused": lambda: Net(
        _reused,
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.Linear(4, 4),
    ),
    "grouped, dilated, uneven": lambda: nn.Sequential(
        nn.Conv2d(3, 6, (3, 2), (1, 2), (2, 1), (2, 1), groups=3),
        nn.BatchNorm2d(6, affine=False),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding="same", groups=2, dilation=2),
        nn.ZeroPad2d((1, 0, 0, 2)),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.SiLU(),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.Flatten(),
        nn.Linear(48, 4),
    ),
    "norm before convolution": lambda: nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.Hardswish(),
        nn.Flatten(),
        nn.Linear(24, 4),
    ),
    "concatenation": lambda: Net(
        _dense_block,
        nn.Conv2d(3, 2, 3, padding=1),
        nn.Conv2d(5, 2, 1),
        nn.Conv2d(7, 2, 3, padding=1),
        nn.Linear(144, 4),
    ),
    "split and shuffled": lambda: Net(
        _split, nn.Conv2d(3, 4, 1), nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.Linear(120, 4)
    ),
    "one dimension": lambda: Net(
        _sequence,
        nn.Conv1d(3, 4, 5, stride=2, padding=2),
        nn.Conv1d(4, 2, 3, padding="same", dilation=2),
        nn.Linear(18, 4),
    ),
    "convolution at the end": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    "tokens": lambda: nn.Sequential(
        *(nn.Flatten(2), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2), nn.Flatten()),
        nn.Linear(6, 4),
    ),
    "group norm": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    ),
    "three dimensions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)),
        *(nn.Conv3d(1, 2, 3, padding=1, bias=False), nn.BatchNorm3d(2), nn.ReLU()),
        *(nn.ConvTranspose3d(2, 1, 2, (1, 1, 2), (1, 0, 1)), nn.ReLU(), nn.Flatten()),
        nn.Linear(140, 4),
    ),
    "transposed convolutions": lambda: nn.Sequential(
        *(nn.Conv2d(3, 4, 3, 2), nn.ReLU()),
        nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, groups=2, bias=False),
        *(nn.BatchNorm2d(4), nn.LeakyReLU(0.1)),
        nn.ConvTranspose2d(4, 2, (3, 2), (2, 1), dilation=(1, 2)),
        *(nn.Tanh(), nn.Flatten(2), nn.ConvTranspose1d(2, 1, 2, 2), nn.ReLU(), nn.Flatten()),
        nn.Linear(108, 4),
    ),
    "matrix per channel": lambda: nn.Sequential(
        *(nn.Flatten(2), nn.Linear(36, 8), nn.ReLU(), MatrixPerChannel(3, 8, 2)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(6, 4)),
    ),
    "encoder layer": _encoder,
    "recurrent": lambda: Net(_recurrent, nn.Linear(36, 5), nn.Linear(5, 5), nn.Linear(5, 4)),
}
"""Networks on samples of shape (3, 6, 6) that return four or five logits."""

KEPT = {
    "norm before convolution": ["7: hardswish"],
    "group norm": ["1: group_norm"],
    "matrix per channel": ["3: matmul"],
    "encoder layer": [
        "2.self_attn: scaled_dot_product_attention",
        "2.norm1: layer_norm",
        "2.norm2: layer_norm",
    ],
}
"""What of them is kept as it is; nothing of those not listed."""


def images(samples: int = 4, shape: tuple[int, ...] = SHAPE) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(samples, *shape, dtype=torch.float64, generator=random)


@cache
def network(name: str) -> nn.Module:
    """`seeded(CONVOLUTIONAL[name])` in evaluation mode, kept: tests do not change it."""
    return seeded(CONVOLUTIONAL[name]).eval()


@cache
def structured(name: str) -> StateEquations:
    """What is read from `network(name)`."""
    return capture(network(name), images())


def sparse(equations: StateEquations, density: float = 0.5) -> StateEquations:
    """The network with zeros in its weights and other biases; shared weights stay shared."""
    random, new = torch.Generator().manual_seed(3), {}
    for e in equations.layers:
        for term in e.terms:
            mask = torch.rand(term.weight.shape, generator=random) < density
            new.setdefault(id(term.weight), term.weight * mask)
    weights = [[new[id(t.weight)] for t in e.terms] for e in equations.layers]
    biases: list[Tensor | None] = []
    for e in equations.layers:
        writable = e.adjust is not None and e.adjust.name
        channel = e.channel_bias if writable else None
        biases.append(None if channel is None else channel + 0.1)
    return with_weights(equations, weights, biases)


def model(name: str) -> ImplicitModel:
    return ImplicitModel.from_equations(sparse(structured(name)))
