"""Networks that take, or return, something else than one tensor of numbers (m, …) and (m, q)."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

WORDS, LENGTH, WIDTH = 11, 3, 8

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Found:
    logits: Tensor
    features: Tensor | None = None


class Net(nn.Module):
    """A forward, and the modules that it uses."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = forward

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.function(self, *inputs, **named)


class Words(nn.Module):
    """Token ids, with a mask of those that count."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.a, self.b, self.head = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH), nn.Linear(WIDTH, 3)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Any = None
    ) -> Any:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.table(input_ids) + self.places(places)
        x = x + self.b(F.gelu(self.a(x)))
        if attention_mask is None:
            return {"logits": self.head(x.mean(1))}
        mask = attention_mask[..., None].to(x.dtype)
        return {"logits": self.head((x * mask).sum(1) / mask.sum(1))}


class Siamese(nn.Module):
    def __init__(self, needs: bool = True) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU())
        self.head = nn.Linear(10, 2)

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        assert b is not None
        x, y = self.f(a), self.f(b)
        return self.head(torch.cat([(x - y).abs(), x * y], 1))


class Language(nn.Module):
    """The next word at every place, by a recurrent layer."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.rnn = getattr(nn, kind)(WIDTH, 7, batch_first=True, **options)
        both = 14 if options.get("bidirectional") else 7
        self.head = nn.Linear(both, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.table(ids))[0])


class TwoHeads(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 9))
        self.boxes, self.classes, self.form = nn.Linear(9, 4), nn.Linear(9, 5), form

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.body(x))
        return self.form(self.boxes(x), self.classes(x))


class Windows(nn.Module):
    """Attention within windows of an image, which stand beside the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm, self.head = nn.Linear(3, 9), nn.LayerNorm(3), nn.Linear(108, 4)

    def forward(self, x: Tensor) -> Tensor:
        m = x.shape[0]
        parts = x.reshape(m, 3, 2, 3, 2, 3).permute(0, 2, 4, 3, 5, 1).reshape(m * 4, 9, 3)
        q, k, v = self.qkv(self.norm(parts)).chunk(3, -1)
        y = parts + (q @ k.mT).softmax(-1) @ v
        return self.head(y.reshape(m, -1))


class Dilated(nn.Module):
    """One kernel at two dilations: the sum of what it gives, not what it gives of the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        far = F.conv2d(x, self.near.weight, padding=2, dilation=2)
        return self.head((self.near(x) + far).relu().flatten(1))


class Tied(nn.Module):
    """Words in and out by one table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.body = nn.Sequential(nn.Linear(WIDTH, 30), nn.ReLU(), nn.Linear(30, WIDTH))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.relu(self.body(self.table(ids))))


class Unrolled(nn.Module):
    """z = tanh(W z + U x), four times from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U, self.o = nn.Linear(8, 8, bias=False), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros(x.shape[0], 8)
        for _ in range(4):
            z = torch.tanh(self.W(z) + self.U(x))
        return self.o(z)


class UNet(nn.Module):
    def __init__(self, *end: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(8, 2, 1)
        self.end = nn.Sequential(*end)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(F.max_pool2d(a, 2)))
        return self.end(self.out(torch.cat([self.up(b), a], 1)))


class Cells(nn.Module):
    """A recurrence of cells, written out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell, self.head = getattr(nn, kind)(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h: Any = None
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.head(h[0] if isinstance(h, tuple) else h)


class Conv1D(nn.Module):
    """GPT-2's linear layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], self.weight.shape[1])


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Parameter(torch.randn(6, 2, 4))
        self.mix = nn.Parameter(torch.randn(2, 4, 5))
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bti,ihd->bthd", x, self.heads).relu()
        x = torch.einsum("bthd,hde->bte", x, self.mix).relu()
        return self.last(x.mean(1))


def mlp(*end: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4), *end)


def head() -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(20, 3)]


def gathered(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places[..., None].expand(-1, -1, 6)).mean(1)


def numbers(*shape: int) -> Tensor:
    return torch.randn(40, *shape, generator=torch.Generator().manual_seed(1))


def words() -> Tensor:
    return torch.randint(WORDS, (40, LENGTH), generator=torch.Generator().manual_seed(1))


def mask() -> Tensor:
    return (torch.arange(LENGTH) <= torch.arange(40)[:, None] % LENGTH).long()


def images() -> Tensor:
    return numbers(3, 6, 6)


Case = tuple[Callable[[], nn.Module], Callable[[], Any]]

INTERFACES: dict[str, Case] = {
    "ids": (Words, words),
    "ids and a mask": (Words, lambda: {"input_ids": words(), "attention_mask": mask()}),
    "a table with labels": (
        Words,
        lambda: {"input_ids": words(), "attention_mask": mask(), "labels": torch.zeros(40)},
    ),
    "two inputs": (Siamese, lambda: (numbers(6), numbers(6).flip(0))),
    "two inputs by name": (Siamese, lambda: {"a": numbers(6), "b": numbers(6).flip(0)}),
    "a truth value": (
        lambda: Net(lambda s, x, y: s.f(x * y[:, None]), f=mlp()),
        lambda: (numbers(6), torch.arange(40) % 2 == 0),
    ),
    "a mask turned round": (
        lambda: Net(lambda s, x, m: s.f(x.masked_fill(~m.bool()[..., None], 0.5).mean(1)), f=mlp()),
        lambda: (numbers(LENGTH, 6), mask()),
    ),
    "a place that ids say": (
        lambda: Net(lambda s, x, k: s.f(x[torch.arange(x.shape[0]), k.argmax(1)]).relu(), f=mlp()),
        lambda: (numbers(LENGTH, 6), words()),
    ),
    "gathered": (
        lambda: Net(lambda s, x, k: s.f(gathered(x, k)), f=mlp()),
        lambda: (numbers(LENGTH, 6), words() % LENGTH),
    ),
    "weight norm": (
        lambda: nn.Sequential(
            weight_norm(nn.Linear(6, 9)), nn.ReLU(), weight_norm(nn.Linear(9, 4))
        ),
        lambda: numbers(6),
    ),
    "zeros like ids": (
        lambda: Net(
            lambda s, k: s.f(s.words(k) + s.kinds(torch.zeros_like(k))).mean(1),
            f=mlp(),
            words=nn.Embedding(WORDS, 6),
            kinds=nn.Embedding(2, 6),
        ),
        words,
    ),
    "casts to another's dtype": (
        lambda: Net(lambda s, x, k: s.f(x * k.type_as(x)) + torch.ones(4).type_as(x), f=mlp()),
        lambda: (numbers(6), words()[:, :1]),
    ),
    "one kernel at two dilations": (Dilated, images),
    "windows": (Windows, images),
    "tied embedding": (Tied, words),
    "recurrence": (Unrolled, lambda: numbers(6)),
    "tuple of heads": (lambda: TwoHeads(lambda a, b: (a, b)), images),
    "table of heads": (lambda: TwoHeads(lambda a, b: {"boxes": a, "classes": b}), images),
    "named tuple": (lambda: TwoHeads(Pair), images),
    "dataclass": (lambda: TwoHeads(Found), images),
    "dataclass of one": (lambda: TwoHeads(lambda a, b: Found(b)), images),
    "nested heads": (lambda: TwoHeads(lambda a, b: {"at": [a, {"what": b}]}), images),
    "heads with ends": (lambda: TwoHeads(lambda a, b: (a.tanh(), b.softmax(1))), images),
    "logits and probabilities": (lambda: TwoHeads(lambda a, b: (b, b.softmax(1))), images),
    "image out": (UNet, images),
    "image of probabilities": (lambda: UNet(nn.Softmax(1)), images),
    "image of events": (lambda: UNet(nn.Sigmoid()), images),
    "softmax": (lambda: mlp(nn.Softmax(1)), lambda: numbers(6)),
    "log softmax": (lambda: mlp(nn.LogSoftmax(-1)), lambda: numbers(6)),
    "sigmoid": (lambda: mlp(nn.Sigmoid()), lambda: numbers(6)),
    "tanh": (lambda: mlp(nn.Tanh()), lambda: numbers(6)),
    "relu": (lambda: mlp(nn.ReLU()), lambda: numbers(6)),
    "norm at the end": (lambda: mlp(nn.LayerNorm(4)), lambda: numbers(6)),
    "one output without an axis": (
        lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 1), nn.Flatten(0)),
        lambda: numbers(6),
    ),
    "one event": (
        lambda: Net(
            lambda s, x: s.f(x).sigmoid().squeeze(1),
            f=nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 1)),
        ),
        lambda: numbers(6),
    ),
    "words out": (lambda: Language("RNN"), words),
    "LSTM": (lambda: Language("LSTM"), words),
    "GRU": (lambda: Language("GRU"), words),
    "two layers both ways": (lambda: Language("RNN", num_layers=2, bidirectional=True), words),
    "RNN of relu": (lambda: Language("RNN", nonlinearity="relu", bias=False), words),
    "LSTM cells": (lambda: Cells("LSTMCell"), lambda: numbers(3, 6)),
    "GRU cells": (lambda: Cells("GRUCell"), lambda: numbers(3, 6)),
    "RNN cells": (lambda: Cells("RNNCell"), lambda: numbers(3, 6)),
    "addmm": (
        lambda: nn.Sequential(
            Conv1D(6, 9), nn.ReLU(), Conv1D(9, 5), nn.Flatten(), nn.Linear(20, 3)
        ),
        lambda: numbers(4, 6),
    ),
    "einsum": (Einsum, lambda: numbers(4, 6)),
    "bilinear": (
        lambda: Net(
            lambda s, a, b: s.head(s.two(a, b).relu()),
            two=nn.Bilinear(6, 3, 9),
            head=nn.Linear(9, 4),
        ),
        lambda: (numbers(6), numbers(3)),
    ),
}
"""Name -> a network, and 40 samples as `implicitize` takes them."""


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return INTERFACES[name][0]().eval()


def called(net: Callable[..., Any], inputs: Any, some: slice = slice(None)) -> Any:
    """Call a network as a user would."""
    if isinstance(inputs, dict):
        return net(**{name: part[some] for name, part in inputs.items() if name != "labels"})
    return net(*(part[some] for part in inputs)) if isinstance(inputs, tuple) else net(inputs[some])


def leaves(output: Any) -> list[Tensor]:
    """The tensors of an output, in their order."""
    if isinstance(output, Tensor):
        return [output]
    if hasattr(output, "__dataclass_fields__"):
        output = vars(output)
    parts = output.values() if isinstance(output, dict) else output
    return [leaf for part in parts if part is not None for leaf in leaves(part)]
