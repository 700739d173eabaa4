"""The distance of outputs: its derivatives, and two ways to write its curvature."""

import pytest
import torch
from torch import Tensor

from simplicit.equations.interface import Output
from simplicit.outputs.distance import Distance
from simplicit.outputs.head import SPREAD


def outputs(m: int = 5, q: int = 4, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    T = scale * torch.randn(m, q, generator=generator).double()
    return T + 0.5 * torch.randn(m, q, generator=generator).double(), T


def curvature(distance: Distance, Y: Tensor) -> Tensor:
    """F of every sample, written out."""
    p = (Y / distance.heads[0].temperature).softmax(1)
    F = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) / (
        2 * distance.heads[0].temperature ** 2
    )
    return F + torch.eye(Y.shape[1]) / (2 * distance.heads[0].variance)


def test_it_is_zero_at_the_teacher_and_grows_from_there():
    Y, T = outputs()
    distance = Distance(T)
    assert torch.allclose(distance(T, T), torch.zeros(5).double(), atol=1e-15)
    assert (distance(Y, T) > 0).all()
    assert not distance.slope(T, T).any()


@pytest.mark.parametrize("scale", [0.1, 1.0, 3 * SPREAD])  # the last one has a temperature
def test_slope_and_curvature_are_the_derivatives(scale):
    Y, T = outputs(scale=scale)
    distance = Distance(T)
    assert (distance.heads[0].temperature > 1) == (scale > 1)

    def total(Y: Tensor) -> Tensor:
        return distance(Y, T).sum()

    slope = torch.autograd.functional.jacobian(total, Y)
    assert isinstance(slope, Tensor)
    torch.testing.assert_close(distance.slope(Y, T), -slope)
    H = torch.autograd.functional.hessian(total, Y)
    assert isinstance(H, Tensor)
    H = torch.stack([H[s, :, s] for s in range(len(Y))])
    torch.testing.assert_close(curvature(distance, Y), H)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3 * SPREAD])
@pytest.mark.parametrize("axes", [(), (3,), (3, 2)])
def test_products_with_the_curvature_and_its_root_are_those_of_the_matrix(scale, axes):
    Y, T = outputs(scale=scale)
    distance = Distance(T)
    D = torch.randn(5, 4, *axes, generator=torch.Generator().manual_seed(2)).double()
    F, flat = curvature(distance, Y), D.reshape(5, 4, -1)
    assert distance.curvature(Y).times(D).shape == D.shape
    torch.testing.assert_close(distance.curvature(Y).times(D).reshape(flat.shape), F @ flat)
    root = distance.curvature(Y).root(D)
    assert root.shape == (5, 8, *axes)
    torch.testing.assert_close(root.square().sum(1), (D * distance.curvature(Y).times(D)).sum(1))


@pytest.mark.parametrize("scale", [0.1, 1.0, 3 * SPREAD])
def test_orthogonal_vectors_become_some_with_exactly_the_curvature(scale):
    Y, T = outputs(q=384, scale=scale)
    distance = Distance(T)
    orthogonal, _ = torch.linalg.qr(torch.randn(768, 768, dtype=torch.float64))
    f = distance.curvature(Y).adjoint(orthogonal.expand(5, 768, 768))
    torch.testing.assert_close(f @ f.mT, curvature(distance, Y))
    D = torch.randn(5, 384, 2, dtype=torch.float64)
    torch.testing.assert_close(f.mT @ D, orthogonal.T @ distance.curvature(Y).root(D))


def test_random_vectors_of_a_sample_do_not_depend_on_the_batches():
    Y, T = outputs(m=50, q=7)
    distance = Distance(T)

    def drawn(size: int) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.cat([distance.random(part, 2, generator) for part in Y.split(size)])

    for size in (1, 7, 16, 49):
        assert torch.equal(drawn(size), drawn(50))


def test_random_vectors_have_the_curvature_as_their_second_moment():
    Y, T = outputs(m=3, q=5)
    distance, count = Distance(T), 200_000
    f = distance.random(Y, count, torch.Generator().manual_seed(0))
    assert f.shape == (3, 5, count) and f.dtype == torch.float64
    F = curvature(distance, Y)
    # entries of a Wishart matrix vary by (F_ij² + F_ii F_jj) / count, those of signs by less
    diagonal = F.diagonal(dim1=1, dim2=2)
    spread = ((F.square() + diagonal[:, :, None] * diagonal[:, None]) / count).sqrt()
    assert ((f @ f.mT / count - F).abs() < 5 * spread).all()
    assert (f.mean(2).abs() < 5 * (diagonal / count).sqrt()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_teacher_that_is_sure_of_everything_has_curvature_all_the_same(dtype):
    """A difference of squares is negative here."""
    Y, T = (10 * M.to(dtype) for M in outputs(m=200))
    distance = Distance(T)
    distance.heads[0].temperature, distance.heads[0].variance = 1.0, 1e20
    D = torch.randn(200, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
    root = distance.curvature(Y).root(D).square().sum(1)
    assert (root >= 0).all() and root.isfinite().all()
    exact = (D.double() * (curvature(distance, Y.double()) @ D.double()[..., None])[..., 0]).sum(1)
    error = (root - exact).abs() / D.square().sum(1)
    assert (error < 10 * torch.finfo(dtype).eps).all()


def test_outputs_that_never_change_have_a_distance():
    T = torch.ones(3, 2).double()
    assert Distance(T).heads[0].variance == 1.0
    assert (Distance(T)(T + torch.eye(3, 2), T) > 0)[:2].all()


CASES = {
    "two outputs": (
        Output("a", (4,), axis=0),
        Output("b", (3,)),
    ),
    "classes at places": (Output("", (5, 3), axis=1),),
    "channels first": (Output("", (3, 2, 2), axis=0),),
    "events": (Output("", (4,), "sigmoid", 0),),
    "an image of events": (Output("", (2, 3, 3), "sigmoid", 0),),
    "one number": (Output("", ()),),
    "an image": (Output("", (2, 3)),),
    "units": (Output("", (2,), axis=0), Output("", (2, 3), axis=0)),
}


def of_case(name: str, scale: float = 1.0) -> tuple[Distance, Tensor, Tensor]:
    outputs_ = CASES[name]
    q = sum(output.size for output in outputs_)
    Y, T = outputs(m=6, q=q, scale=scale)
    if name == "units":
        unit = torch.tensor([1.0, 1e-3, *[1.0] * 3, *[1e3] * 3]).double()
        Y, T = unit * Y, unit * T
    return Distance(T, outputs_), Y, T


@pytest.mark.parametrize("scale", [0.5, 3 * SPREAD])
@pytest.mark.parametrize("name", CASES)
def test_of_any_outputs_slope_curvature_and_roots_are_the_derivatives(name, scale):
    distance, Y, T = of_case(name, scale)
    assert not distance.slope(T, T).any() and (distance(Y, T) > 0).all()
    torch.testing.assert_close(distance(T, T), torch.zeros(6).double(), rtol=0, atol=1e-12)

    def total(Y: Tensor) -> Tensor:
        return distance(Y, T).sum()

    slope = torch.autograd.functional.jacobian(total, Y)
    H = torch.autograd.functional.hessian(total, Y)
    assert isinstance(slope, Tensor) and isinstance(H, Tensor)
    torch.testing.assert_close(distance.slope(Y, T), -slope)
    q = Y.shape[1]
    F = distance.curvature(Y).times(torch.eye(q).double().expand(6, q, q))
    torch.testing.assert_close(F, torch.stack([H[s, :, s] for s in range(6)]))
    root = distance.curvature(Y).root(torch.eye(q).double().expand(6, q, q))
    torch.testing.assert_close(root.mT @ root, F)
    back = distance.curvature(Y).adjoint(torch.eye(2 * q).double().expand(6, 2 * q, 2 * q))
    torch.testing.assert_close(back, root.mT)


def test_quantities_in_units_of_their_own_do_not_depend_on_the_units():
    generator = torch.Generator().manual_seed(0)
    T = torch.randn(200, 3, generator=generator).double()
    Y, unit = T + 0.1 * torch.randn(200, 3, generator=generator).double(), [20.0, 0.1, 1000.0]
    first = Distance(T * torch.tensor(unit))(Y * torch.tensor(unit), T * torch.tensor(unit))
    other = Distance(T * torch.tensor(unit[::-1]))
    again = other(Y * torch.tensor(unit[::-1]), T * torch.tensor(unit[::-1]))
    torch.testing.assert_close(first, again, rtol=1e-6, atol=0)


def test_what_does_not_move_is_no_quantity_in_another_unit():
    T = torch.randn(100, 3).double()
    T[:, 2] = 5.0 + 1e-9 * torch.randn(100)
    assert isinstance(Distance(T).heads[0].variance, float)
    assert isinstance(
        Distance(torch.randn(50, 40).double() * 2.0 ** torch.arange(40)).heads[0].variance, float
    )
