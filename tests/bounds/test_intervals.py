from fractions import Fraction
from typing import get_args

import pytest
import torch
from torch import Tensor

from random_models import MIXED, PHIS, implicit_model, inputs, same
from simplicit.bounds.exact import equations_of
from simplicit.bounds.intervals import Box, affine, around, image
from simplicit.bounds.layer_boxes import boxes, prepared
from simplicit.bounds.relaxation import lines
from simplicit.equations.phi import Phi, PhiName


def draw(*shape: int, seed: int = 0, spread: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = 10 ** (spread * torch.randn(*shape, dtype=torch.float64, generator=generator))
    return size * torch.randn(*shape, dtype=torch.float64, generator=generator)


def box(m: int, n: int, seed: int = 0, width: float = 1.0) -> Box:
    low = draw(m, n, seed=seed)
    return Box(low, low + width * draw(m, n, seed=seed + 1).abs())


def inside(where: Box, seed: int = 3, corners: bool = False) -> Tensor:
    part = torch.rand(where.low.shape, dtype=torch.float64, generator=torch.manual_seed(seed))
    if corners:
        return torch.where(part > 0.5, where.high, where.low)
    return (where.low + part * (where.high - where.low)).clamp(where.low, where.high)


@pytest.mark.parametrize("width", [0.0, 1e-12, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_an_affine_box_holds_the_exact_one_and_hardly_more(seed, width):
    W, b, x = draw(4, 9, seed=seed, spread=3), draw(4, seed=seed + 1), box(5, 9, seed, width)
    found = affine(W, x, b)
    for s in range(5):
        for k in range(4):
            row = [Fraction(w) for w in W[k].tolist()]
            ends = list(
                zip(
                    map(Fraction, x.low[s].tolist()), map(Fraction, x.high[s].tolist()), strict=True
                )
            )
            bias = Fraction(b[k].item())
            low = bias + sum(min(w * lo, w * hi) for w, (lo, hi) in zip(row, ends, strict=True))
            high = bias + sum(max(w * lo, w * hi) for w, (lo, hi) in zip(row, ends, strict=True))
            size = sum(
                abs(w) * max(abs(lo), abs(hi)) for w, (lo, hi) in zip(row, ends, strict=True)
            ) + abs(bias)
            slack = Fraction(1, 10**13) * size
            assert low - slack <= Fraction(found.low[s, k].item()) <= low
            assert high <= Fraction(found.high[s, k].item()) <= high + slack


def test_a_ball_is_in_its_box_and_bounds_cut_it():
    u = torch.rand(50, 7, dtype=torch.float64)
    eps = torch.linspace(0, 0.5, 50, dtype=torch.float64)
    free, cut = around(u, eps), around(u, eps, (0.0, 1.0))
    for s in range(50):
        low = [Fraction(v) - Fraction(eps[s].item()) for v in u[s].tolist()]
        assert all(Fraction(v) <= w for v, w in zip(free.low[s].tolist(), low, strict=True))
    assert torch.equal(free.low[0], u[0]) and torch.equal(free.high[0], u[0])
    assert cut.low.min() >= 0 and cut.high.max() <= 1
    assert torch.equal(cut.low, free.low.clamp(0, 1))


@pytest.mark.parametrize("phi", PHIS, ids=str)
def test_the_image_holds_phi_and_is_tight(phi):
    z = box(20, 30, width=3)
    found = image(phi, z)
    for corners in (False, True):
        x = phi(inside(z, corners=corners))
        assert (found.low <= x).all() and (x <= found.high).all()
    assert torch.allclose(found.low, phi(z.low), atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("blocks", [MIXED, same(Phi("relu"))], ids=["mixed", "relu"])
@pytest.mark.parametrize("structure", ["triangular", "layered"])
def test_propagation_holds_the_states(structure, blocks):
    model = implicit_model(structure, blocks).requires_grad_(False)
    layers = prepared(equations_of(model))
    u = around(inputs(model, 40).flatten(1), torch.full((40,), 0.3, dtype=torch.float64))
    found = [b.x for b in boxes(layers, u)][::-1]
    low, high = torch.cat([x.low for x in found], 1), torch.cat([x.high for x in found], 1)
    for seed in range(20):
        point = inside(u, seed, corners=seed % 2 == 0)
        x = model.equilibrium(point.unflatten(1, model.input_shape)).states
        assert (low <= x + 1e-14).all() and (x - 1e-14 <= high).all()


def test_a_box_without_width_is_as_good_as_the_point():
    model = implicit_model("triangular").requires_grad_(False)
    u = inputs(model, 20).flatten(1)
    found = boxes(prepared(equations_of(model)), Box(u, u))
    assert all(float(layer.x.radius.max()) < 1e-12 for layer in found)


@pytest.mark.parametrize("name", get_args(PhiName))
@pytest.mark.parametrize("width", [0.0, 0.5, 8.0])
def test_image_and_lines_hold_every_activation(name, width):
    phi = Phi(name)
    z = box(1, 400, width=width)
    z = Box(4 * z.low, 4 * z.low + (z.high - z.low))
    found, around_it = image(phi, z), lines(phi, z)
    for part in torch.linspace(0, 1, 200, dtype=torch.float64):
        at = (z.low + part * (z.high - z.low)).clamp(z.low, z.high)
        x = phi(at)
        assert (found.low <= x).all() and (x <= found.high).all()
        assert (around_it.slope_below * at + around_it.below <= x + 1e-13).all()
        assert (x <= around_it.slope_above * at + around_it.above + 1e-13).all()
