"""Certificates against attacks on every kind of model, and the bounds against each other."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from random_models import MIXED, PHIS, contraction, implicit_model, inputs, same
from shapes import unchecked
from simplicit.bounds.certify import as_model, certify, proved
from simplicit.bounds.exact import equations_of
from simplicit.bounds.intervals import around
from simplicit.bounds.layer_boxes import Layer, prepared
from simplicit.bounds.lipschitz import lipschitz_bound, resolvent, sensitivity_matrix, steepest
from simplicit.bounds.mixed_monotone import Start, equilibrium_boxes, first_box, start
from simplicit.equations.phi import Phi
from simplicit.errors import InputError
from simplicit.model.certificate import well_posedness
from simplicit.model.equilibrium import Block
from simplicit.model.implicit import ImplicitModel

BLOCKS = {"mixed": MIXED} | {f"{phi.name} {phi.slope}": same(phi) for phi in PHIS}
EVERY = ("lipschitz", "interval", "mixed-monotone", "linear")


def labelled(model: nn.Module, u: Tensor) -> Tensor:
    with torch.no_grad():
        return model(u).argmax(1)


@unchecked()
def worst_margin(model: ImplicitModel, u: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Least margin found by signed gradient steps from many starts, and at random corners."""
    shape = (-1, *[1] * (u.ndim - 1))
    r, least = radius.reshape(shape), torch.full((len(u),), torch.inf, dtype=u.dtype)
    generator = torch.Generator().manual_seed(0)
    for trial in range(4):
        sign = torch.rand(u.shape, dtype=u.dtype, generator=generator) * 2 - 1
        point = u + r * (sign.sign() if trial % 2 else sign)
        for _ in range(8):
            point = point.detach().requires_grad_()
            out = model(point)
            own = out.gather(1, y[:, None])[:, 0]
            other = out.scatter(1, y[:, None], -torch.inf).amax(1)
            least = torch.minimum(least, (own - other).detach())
            (slope,) = torch.autograd.grad((own - other).sum(), point)
            point = torch.minimum(torch.maximum(point - r / 4 * slope.sign(), u - r), u + r)
    return least


def wide(structure, blocks=MIXED, seed=0) -> ImplicitModel:
    """As `implicit_model`, with four outputs and a diagonal."""
    model = implicit_model(structure, blocks, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    A = model.A.to_dense().detach()
    if structure == "full":
        A = A * (2 * torch.eye(len(A), dtype=A.dtype) + 1) / 3 if seed % 2 else A
    C = torch.randn(4, model.n, dtype=A.dtype, generator=generator)
    D = 0.1 * torch.randn(4, model.p, dtype=A.dtype, generator=generator)
    if structure == "layered":
        C[:, model.blocks[0].size :], D[:] = 0, 0
    return ImplicitModel(
        A, model.B.to_dense().detach(), C, D, model.b, None, blocks=model.blocks,
        structure=structure, input_shape=model.input_shape, reference_nonzeros=1,
    )  # fmt: skip


def begun(model: ImplicitModel, u: Tensor) -> tuple[Layer, Start]:
    """The layer of a model with feedback, and where its boxes begin."""
    layer = prepared(equations_of(model))[0]
    return layer, start(layer, u, model.certificate)


KINDS = [("triangular", name) for name in BLOCKS]
KINDS += [("full", name) for name in BLOCKS if name not in ("relu 0.01", "leaky_relu 0.2")]


@pytest.mark.parametrize(
    ("structure", "name"), [*KINDS, ("layered", "mixed"), ("layered", "relu 0.01")]
)
def test_no_attack_beats_a_certificate(structure, name):
    model = wide(structure, BLOCKS[name])
    u = inputs(model, 12)
    y = labelled(model, u)
    radius = [certify(model, u, y, 0.05, methods=[method]).radius for method in EVERY]
    assert all((r > 0).any() for r in radius)
    repeated = (u.repeat(len(EVERY), 1, 1), y.repeat(len(EVERY)), torch.cat(radius))
    assert (worst_margin(model, *repeated) >= -1e-9).all()


@pytest.mark.parametrize("structure", ["triangular", "layered", "full"])
def test_linear_and_mixed_monotone_bounds_are_the_tighter_ones(structure):
    model = wide(structure, same(Phi("relu")))
    u = inputs(model, 20)
    y = labelled(model, u)
    radius = {m: certify(model, u, y, 0.05, methods=[m]).radius for m in EVERY}
    everything = certify(model, u, y, 0.05).radius
    assert (radius["mixed-monotone"] >= radius["interval"] * (1 - 0.011)).all()
    assert radius["linear"].mean() > radius["interval"].mean()
    for method in EVERY:
        assert (everything >= radius[method] * (1 - 0.011)).all()


@pytest.mark.parametrize("seed", range(4))
def test_mixed_monotone_boxes_are_inside_intervals(seed):
    # a strong negative diagonal, where the two differ
    model = implicit_model("full", same(PHIS[seed % 4]), seed=seed)
    A = contraction(model.n, 0.5, seed) - 0.45 * torch.eye(model.n, dtype=torch.float64)
    A = A / steepest(PHIS[seed % 4], len(A))[:, None].clamp_min(1)
    model = ImplicitModel(
        A, *(t.to_dense().detach() for t in (model.B, model.C, model.D)), blocks=model.blocks,
        structure="full", input_shape=model.input_shape, reference_nonzeros=1,
    )  # fmt: skip
    u = inputs(model, 30).flatten(1)
    ball = around(u, torch.full((30,), 0.2, dtype=torch.float64))
    layer, begin = begun(model, u)
    held = equilibrium_boxes(layer, ball, begin).x
    plain = equilibrium_boxes(layer, ball, begin, hold=False).x
    assert (held.radius <= plain.radius * (1 + 1e-9)).all()
    assert held.radius.sum() < 0.95 * plain.radius.sum()
    for trial in range(10):
        generator = torch.Generator().manual_seed(trial)
        point = u + 0.2 * (torch.rand(u.shape, dtype=u.dtype, generator=generator) * 2 - 1).sign()
        x = model.equilibrium(point.unflatten(1, model.input_shape)).states
        assert (held.low <= x + 1e-9).all() and (x - 1e-9 <= held.high).all()


def test_a_residual_widens_the_box_and_it_still_holds_the_equilibrium():
    model = implicit_model("full")
    u = inputs(model, 20).flatten(1)
    x = model.equilibrium(u.unflatten(1, model.input_shape), tol=1e-13).states.detach()
    layer, begin = begun(model, u)
    far = begin._replace(x=x + 0.1)
    ball = around(u, torch.zeros(20, dtype=u.dtype))
    box = first_box(layer, ball, far)
    assert (box.low <= x).all() and (x <= box.high).all()
    near = first_box(layer, ball, begin)
    assert near.radius.max() < 1e-6 < box.radius.min()


def test_relu_in_one_dimension_is_certified_to_the_true_radius():
    # y = (relu(u), 1): the class changes at u = 1
    one = torch.ones(1, 1, dtype=torch.float64)
    model = ImplicitModel(
        0 * one, one, torch.tensor([[1.0], [0.0]], dtype=torch.float64), torch.zeros(2, 1).double(),
        None, torch.tensor([0.0, 1.0], dtype=torch.float64), blocks=[Block("fc", 1, Phi("relu"))],
        structure="layered", input_shape=(1,), reference_nonzeros=1,
    )  # fmt: skip
    u = torch.tensor([[3.0], [0.25], [-1.0], [3.0]])
    found = certify(model, u, torch.tensor([0, 1, 1, 1]), 1.0)
    assert found.radius[:3].numpy() == pytest.approx([2.0, 0.75, 2.0], rel=0.011)
    assert (found.radius[:3] <= torch.tensor([2.0, 0.75, 2.0])).all()
    assert found.certified.tolist() == [True, False, True, False] and found.radius[3] == 0
    cut = certify(model, u[1:2], torch.tensor([1]), 1.0, bounds=(0.0, 0.9))
    assert cut.certified.all() and cut.radius[0] > 1e5


@pytest.mark.parametrize("structure", ["triangular", "full"])
@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
def test_the_sensitivity_matrix_bounds_every_move(structure, blocks):
    model = wide(structure, blocks)
    S = sensitivity_matrix(model)
    u, v = inputs(model, 50, 3), inputs(model, 50, 4)
    with torch.no_grad():
        moved, by = (model(u) - model(v)).abs(), (u - v).abs().flatten(1)
    assert (moved <= by @ S.T * (1 + 1e-9) + 1e-9).all()
    assert float((moved.amax(1) / by.amax(1)).max()) <= lipschitz_bound(model)


def test_the_sensitivity_matrix_of_positive_linear_layers_is_exact():
    blocks = same(Phi("identity"))
    model = implicit_model("triangular", blocks)
    parts = [t.to_dense().detach().abs() for t in (model.A, model.B, model.C, model.D)]
    model = ImplicitModel(
        *parts, blocks=blocks, structure="triangular", input_shape=(2, 3), reference_nonzeros=1
    )
    J = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], inputs(model, 1)[0])
    assert torch.allclose(sensitivity_matrix(model), J.flatten(1), rtol=1e-12)


def exact_inverse(M: list[list[Fraction]]) -> list[list[Fraction]]:
    """(I − M)⁻¹ by elimination in rational numbers; an M-matrix needs no pivoting."""
    n = len(M)
    rows = [
        [Fraction(i == j) - M[i][j] for j in range(n)] + [Fraction(i == j) for j in range(n)]
        for i in range(n)
    ]
    for i in range(n):
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in range(n):
            if k != i and rows[k][i]:
                rows[k] = [v - rows[k][i] * w for v, w in zip(rows[k], rows[i], strict=True)]
    return [row[n:] for row in rows]


@pytest.mark.parametrize("structure", ["full", "triangular"])
@pytest.mark.parametrize("seed", range(2))
def test_the_resolvent_is_an_upper_bound(seed, structure):
    A, one = contraction(8, 0.999, seed), torch.ones(8, dtype=torch.float64)
    A = A if structure == "full" else 9 * A.triu(1)
    X = resolvent(A, one, well_posedness(A, one))
    exact = exact_inverse([[Fraction(abs(v)) for v in row] for row in A.tolist()])
    for bound, entry in zip(X.flatten().tolist(), sum(exact, []), strict=True):
        assert entry <= Fraction(bound) <= entry * (1 + Fraction(1, 10**9)) + Fraction(
            1, 10**300
        ) or (structure == "full" and Fraction(bound) - entry < Fraction(1, 10**8))


def test_a_model_that_is_not_well_posed_is_refused():
    model = implicit_model("full")
    with torch.no_grad():
        model.learned[0].mul_(50)
    with pytest.raises(InputError, match="not certified well-posed"):
        certify(model, inputs(model), torch.zeros(7, dtype=torch.int64), 0.1)


def test_networks_are_certified_as_their_layers_and_left_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    u = torch.randn(30, 5)
    y = labelled(net, u)
    found = certify(net, u, y, 0.02)
    exact = as_model(net, u)
    assert next(net.parameters()).dtype == torch.float32
    assert torch.allclose(exact(u.double()).float(), net(u), atol=1e-6)
    assert torch.equal(found.radius, certify(exact, u, y, 0.02).radius)
    assert (worst_margin(exact, u.double(), y, found.radius) >= -1e-9).all()


def test_misclassified_samples_have_no_radius_and_batches_do_not_matter():
    model = wide("triangular")
    u = inputs(model, 20)
    y = labelled(model, u)
    y[::2] = (y[::2] + 1) % 4
    found = certify(model, u, y, 0.01)
    assert not found.radius[::2].any() and not found.certified[::2].any()
    assert (found.radius[1::2] > 0).all()
    alone = torch.cat([certify(model, u[i : i + 1], y[i : i + 1], 0.01).radius for i in range(5)])
    assert torch.allclose(alone, found.radius[:5], rtol=0.011)
    assert torch.equal(found.certified, found.radius >= 0.01)
    assert torch.equal(proved(model, u, y, 0.01), found.certified)
    assert len(certify(model, u[:0], y[:0], 0.1).radius) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"eps": -1.0}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"x": torch.full((7, 2, 3), float("nan"))}, "NaN"),
        ({"x": torch.zeros(7, 6)}, "shape"),
        ({"y": torch.full((7,), 9)}, "classes from 0 to 3"),
        ({"bounds": (0.0, 0.1)}, "outside"),
        ({"methods": ["interval", "magic"]}, "lipschitz, interval, mixed-monotone, linear"),
    ],
)
def test_what_cannot_be_is_refused(change, says):
    model = wide("triangular")
    given = {"x": inputs(model), "y": torch.zeros(7, dtype=torch.int64), "eps": 0.1} | change
    with pytest.raises(InputError, match=says):
        certify(model, **given)


def test_logits_of_attacked_points_stay_above_the_linear_bound():
    model = wide("triangular", same(Phi("relu")))
    u = inputs(model, 10)
    y = labelled(model, u)
    radius = certify(model, u, y, 0.1, methods=["linear"]).radius
    # beyond the radius the bound is near zero, and a step of ten times it changes most classes
    beaten = worst_margin(model, u, y, 10 * radius) < 0
    assert beaten.double().mean() > 0.5
