"""Boxes of convolutional networks hold what attacks and random inputs reach; maps by themselves."""

import pytest
import torch
from torch import nn

import simplicit
from conv_networks import ResNet20, images, lenet, seeded
from simplicit.bounds.intervals import Box
from simplicit.bounds.layer_boxes import Layer, prepared, transposed
from simplicit.capture.read import capture
from simplicit.equations.equation import Equation, Summand, Term
from simplicit.equations.network import StateEquations
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Conv, Dense, Gather, Sparse


def inside(box: Box, x: torch.Tensor) -> bool:
    return bool(((box.low <= x) & (x <= box.high)).all())


def maps() -> list[Conv | Dense | Gather | Sparse]:
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    row, column = torch.tensor([0, 0, 2, 3]), torch.tensor([1, 5, 2, 2])
    return [
        Conv(weight, (6, 5, 5), (2, 1), ((1, 0), (1, 1)), (1, 1), groups=2),
        Conv(weight, (6, 6, 7), (2, 1), ((1, 1), (0, 0)), (1, 2), groups=2),
        Conv(weight[..., 0], (3, 6), (2,), ((1, 1),), (1,)),
        Dense(torch.randn(4, 6, dtype=torch.float64), positions=5),
        Gather(torch.tensor([3, -1, 0, 0]), 4),
        Sparse(row, column, torch.randn(4, dtype=torch.float64), 4, 6),
    ]


def layer(linear: Conv | Dense | Gather | Sparse) -> Layer:
    """z = W s, or G s, of the input."""
    fixed = isinstance(linear, Gather | Sparse)
    terms = () if fixed else (Term(-1, linear),)
    one = Equation("one", terms, None, Phi("relu"), (Summand(-1, linear),) if fixed else ())
    last = Equation("last", (Term(0, Dense(torch.ones(1, one.size).double())),), None, one.phi)
    return prepared(StateEquations((one,), last, (linear.columns,), 1))[0]


@pytest.mark.parametrize("linear", maps(), ids=lambda m: type(m).__name__)
def test_a_maps_box_is_the_tightest(linear):
    low = torch.randn(3, linear.columns, dtype=torch.float64)
    box = Box(low, low + torch.rand(3, linear.columns, dtype=torch.float64))
    found, W = layer(linear).box([box]), linear.to_dense().double()
    up, down = W.clamp_min(0), W.clamp_max(0)
    exact = (box.low @ up.T + box.high @ down.T, box.high @ up.T + box.low @ down.T)
    torch.testing.assert_close((found.low, found.high), exact, rtol=1e-12, atol=1e-12)
    assert (found.low <= exact[0] + 1e-15).all() and (found.high >= exact[1] - 1e-15).all()


@pytest.mark.parametrize("linear", maps(), ids=lambda m: type(m).__name__)
def test_the_transpose_is_that_of_the_matrix(linear):
    y = torch.randn(5, linear.rows, dtype=torch.float64)
    exact = y @ linear.to_dense().double()
    torch.testing.assert_close(transposed(linear, y), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [lenet, lambda: ResNet20(4, 1, 5)], ids=["LeNet", "ResNet"])
def test_no_input_within_the_radius_changes_the_class(make):
    net = seeded(make).double().eval()
    shape = (1, 12, 12) if make is lenet else images(1).shape[1:]
    random = torch.Generator().manual_seed(0)
    x = torch.rand(4, *shape, generator=random, dtype=torch.float64)
    y = net(x).argmax(1)
    equations = capture(net, x[:2])
    assert equations.structured
    model = simplicit.ImplicitModel.from_equations(equations)
    certified, radius = simplicit.certify(net, x, y, eps=1e-3)
    assert torch.equal(simplicit.certify(model, x, y, eps=1e-3).radius, radius)
    assert torch.equal(certified, radius >= 1e-3) and (radius > 0).any()
    wrong = simplicit.certify(net, x, (y + 1) % net(x).shape[1], eps=1e-3)
    assert not wrong.certified.any() and not wrong.radius.any()
    moved = x.clone().requires_grad_()
    for _ in range(5):  # the class's worst direction, by signs of the gradient
        loss = nn.functional.cross_entropy(net(moved), y)
        (slope,) = torch.autograd.grad(loss, moved)
        step = radius.view(-1, 1, 1, 1)
        moved = (x + step * slope.sign()).detach().requires_grad_()
        assert torch.equal(net(moved).argmax(1)[radius > 0], y[radius > 0])
