"""Everything is done on the device asked for: nothing is left on the processor by mistake."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elsewhere import DEVICE, Away, elsewhere
from shapes import unchecked
from simplicit import fit as fits
from simplicit.capture.read import capture
from simplicit.convex import products
from simplicit.equations.network import StateEquations
from simplicit.fit import fit
from simplicit.outputs.sweeps import samples
from simplicit.recipe import Recipe
from simplicit.refine import robustify
from simplicit.solvers import stages
from simplicit.sparsity import choice
from simplicit.sparsity.elimination import of_rows


class Here:
    """Does in this thread what a pool would do: the pretended device is a thread's own."""

    def __init__(self, *_: Any) -> None:
        pass

    def map(self, function: Callable[..., Any], *pieces: Iterable[Any]) -> list[Any]:
        """Apply a function to every piece."""
        return [function(*piece) for piece in zip(*pieces, strict=False)]


@pytest.fixture(autouse=True)
def in_this_thread(monkeypatch):
    """No threads."""
    monkeypatch.setattr(samples, "ThreadPoolExecutor", Here)


def dense() -> tuple[nn.Module, Tensor]:
    """A network of matrices, and inputs."""
    net = [nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 3)]
    return nn.Sequential(*net), torch.randn(20, 9)


def convolutions() -> tuple[nn.Module, Tensor]:
    """A network of convolutions, groups and pools, and images."""
    net = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    net += [nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*net, nn.Flatten(), nn.Linear(4, 3)).eval(), torch.randn(12, 2, 6, 6)


def long_kernels() -> tuple[nn.Module, Tensor]:
    """A convolution whose Gram is a sum over shifts."""
    net = [nn.Conv1d(2, 3, 9, padding=4), nn.ReLU(), nn.AdaptiveAvgPool1d(2), nn.Flatten()]
    return nn.Sequential(*net, nn.Linear(6, 3)), torch.randn(12, 2, 24)


class Tokens(nn.Module):
    """Kept operations, and rows shared by positions."""

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.norm = nn.Linear(8, 9), nn.LayerNorm(9)
        self.classes = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Classify (m, 5, 8)."""
        return self.classes(torch.relu(self.norm(self.lines(x))).mean(1))


def tokens() -> tuple[nn.Module, Tensor]:
    """A network of tokens, and sequences."""
    return Tokens(), torch.randn(12, 5, 8)


@cache
def read(make: Callable[[], tuple[nn.Module, Tensor]]) -> tuple[nn.Module, Tensor, StateEquations]:
    """The network, its inputs, and its equations: it is read where it is, before anything moves."""
    torch.manual_seed(0)
    net, u = make()
    return net, u, capture(net, u)


HALF: dict[str, Any] = {"sparsity": 0.5, "tol": 0.1}
DENSE: list[dict[str, Any]] = [
    HALF | {"sweeps": 4},
    HALF | {"sweeps": 0},
    HALF | {"structure": "full"},
    HALF | {"objective": "robustness", "robustness": 0.02, "sweeps": 4},
    HALF | {"support": "elimination", "sweeps": 0},
    {"structure": "full", "kappa": 0.5, "tol": 0.1},
]
CASES = [(dense, options) for options in DENSE]
CASES += [(make, HALF) for make in (convolutions, long_kernels, tokens)]
CASES += [(convolutions, HALF | {"support": "elimination"})]


@pytest.mark.parametrize(("make", "options"), CASES)
def test_a_fit_elsewhere_has_the_bits_of_one_here(make, options, monkeypatch):
    monkeypatch.setattr(choice, "WIDE", 8)  # long rows, priced among candidates
    # a processor's own ways have other last bits
    monkeypatch.setattr(products, "_here", lambda _: False)
    monkeypatch.setattr(of_rows, "by_itself", lambda *_: False)
    monkeypatch.setattr(stages, "descend", lambda *_: False)
    monkeypatch.setattr(robustify, "LEVELS", 2)
    net, u, equations = read(make)
    monkeypatch.setattr(fits, "capture", lambda *_: equations)
    recipe = Recipe(**options)
    # shapes are checked where other tests fit
    with unchecked():
        here = fit(net, u, recipe, workers=1).model
    with unchecked(), elsewhere():
        model = fit(net, u, recipe, workers=1, device=DEVICE).model
        if not model.equations.feedback:
            away = model.equations.changed(lambda tensor: tensor.to(DEVICE))
            assert torch.equal(away.replay(u.to(DEVICE))[1].cpu(), here.equations.replay(u)[1])
    for mine, other in zip(here.equations.layers, model.equations.layers, strict=True):
        for term, found in zip(mine.terms, other.terms, strict=True):
            assert not isinstance(found.weight, Away)  # given back where the network is
            assert torch.equal(term.weight, found.weight)
        if mine.bias is None or other.bias is None:
            assert mine.bias is other.bias
        else:
            assert torch.equal(mine.bias, other.bias)


def test_the_pretence_refuses_what_a_device_refuses():
    with elsewhere():
        away = torch.ones(3, device=DEVICE)
        assert float(away.sum()) == 3
        assert (away + 1).device == DEVICE
        assert (away[torch.tensor([0, 1])]).device == DEVICE
        assert torch.tensor([1.0], device=DEVICE).tolist() == [1]
        with pytest.raises(RuntimeError, match="a tensor of the processor"):
            away.add(torch.ones(3))
        with pytest.raises(RuntimeError, match="a tensor of the processor"):
            away.gather(0, torch.tensor([0, 1]))
