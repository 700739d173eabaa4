"""Backward substitution on every kind of network: sound, inside the boxes, and as on matrices."""

from fractions import Fraction
from functools import cache
from itertools import cycle

import pytest
import torch
from torch import Tensor, nn

from conv_networks import CONVOLUTIONAL, KEPT, images, network, structured
from random_models import MIXED, implicit_model, inputs, same
from simplicit.bounds.certify import as_model, certify
from simplicit.bounds.exact import equations_of
from simplicit.bounds.intervals import Box, around
from simplicit.bounds.layer_boxes import boxes, prepared
from simplicit.bounds.linear_bounds import Substitution, refined
from simplicit.bounds.lipschitz import lipschitz_bound, sensitivity_matrix
from simplicit.bounds.mixed_monotone import equilibrium_boxes, start
from simplicit.bounds.relaxation import Lines, lines, unsettled, windows
from simplicit.equations.layer_phi import MaxPool
from simplicit.equations.network import StateEquations
from simplicit.equations.phi import Phi
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel


def perceptron(*phis: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = (108, 16, 12, 7)[: len(phis) + 1]
    pairs = zip(sizes, sizes[1:], phis, strict=False)
    hidden = [layer for a, b, phi in pairs for layer in (nn.Linear(a, b), phi)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], 4)).double()


PERCEPTRONS = {
    "relu": (nn.ReLU(), nn.ReLU(), nn.ReLU()),
    "leaky": (nn.LeakyReLU(0.2), nn.ReLU6(), nn.Identity()),
    "tanh": (nn.Tanh(), nn.Sigmoid(), nn.Tanh()),
    "silu, gelu": (nn.SiLU(), nn.GELU(), nn.GELU("tanh")),
}
NAMES = [*PERCEPTRONS, *(name for name in CONVOLUTIONAL if name not in KEPT)]


@cache
def model(name: str) -> ImplicitModel:
    """Kept: tests do not change it."""
    if name in PERCEPTRONS:
        return as_model(perceptron(*PERCEPTRONS[name]), images())
    return ImplicitModel.from_equations(structured(name)).cast(torch.float64)


def pre_activations(equations: StateEquations, u: Tensor) -> list[Tensor]:
    pre, y = equations.replay(u)
    return [*pre, y]


def points(equations: StateEquations, u: Tensor, eps: float) -> list[Tensor]:
    """Random points of the ball, corners of it, and what signed gradients of each margin reach."""
    random = torch.Generator().manual_seed(0)
    found = []
    for trial in range(8):
        part = 2 * torch.rand(u.shape, generator=random, dtype=u.dtype) - 1
        found.append(u + eps * (part.sign() if trial % 2 else part))
    y = equations.replay(u)[1]
    own = y.argmax(1)
    for other in range(y.shape[1]):
        point = found[other % 8]
        for _ in range(5):
            point = point.detach().requires_grad_()
            y = equations.replay(point)[1]
            lead = (y.gather(1, own[:, None])[:, 0] - y[:, other]).sum()
            (slope,) = torch.autograd.grad(lead, point)
            point = torch.minimum(torch.maximum(point - eps / 2 * slope.sign(), u - eps), u + eps)
        found.append(point.detach())
    return found


def differences(q: int, label: Tensor) -> Tensor:
    one = torch.eye(q, dtype=torch.float64)
    return one[label][:, None] - one


@pytest.mark.parametrize(("name", "eps"), list(zip(NAMES, cycle((0.001, 0.03)), strict=False)))
def test_nothing_leaves_the_bounds_and_they_are_inside_the_intervals(name, eps):
    equations = equations_of(model(name))
    u = images(2).flatten(1)
    ball = around(u, torch.full((len(u),), eps, dtype=torch.float64))
    layers = prepared(equations)
    plain, found = boxes(layers, ball), refined(layers, ball)
    label = equations.replay(u)[1].argmax(1)
    wanted = differences(equations.q, label)
    lower, loose = found.margins(wanted), Substitution(layers, ball, plain).margins(wanted, False)
    off = wanted.abs().sum(2) > 0
    assert (lower >= loose - 1e-12 * (1 + loose.abs())).all()
    assert (lower > loose)[off].all()
    for inner, outer in zip(found.boxes, plain, strict=True):
        assert (inner.z.radius <= outer.z.radius * (1 + 1e-12) + 1e-12).all()
    for point in points(equations, u, eps):
        *z, y = pre_activations(equations, point)
        for value, box in zip(z, found.boxes, strict=True):
            size = 1e-11 * (1 + value.abs())
            assert (box.z.low <= value + size).all() and (value - size <= box.z.high).all()
        lead = y.gather(1, label[:, None]) - y
        assert (lower <= lead + 1e-10 * (1 + y.abs().amax())).all()


@pytest.mark.parametrize("name", NAMES)
def test_sensitivities_of_every_network_bound_its_moves(name):
    exact = model(name)
    S, bound = sensitivity_matrix(exact), lipschitz_bound(exact)
    u, v = images(4), images(4).flip(0) * 0.7
    with torch.no_grad():
        moved, by = (exact(u) - exact(v)).abs(), (u - v).abs().flatten(1)
    assert (moved <= by @ S.T * (1 + 1e-9) + 1e-9).all()
    assert (moved.amax(1) <= bound * by.amax(1) * (1 + 1e-9)).all()
    assert bound <= float(S.sum(1).max()) * (1 + 1e-9)


def crown(exact: ImplicitModel, c: Tensor, e: Tensor, around_x: Lines, u: Box) -> Tensor:
    """c x + e u from below by the formulas on A and B: λ, then its least value on the inputs."""
    A, B = (t.to_dense().detach() for t in (exact.A, exact.B))
    b = A.new_zeros(exact.n) if exact.b is None else exact.b.detach()
    below, above = around_x.slope_below[:, None], around_x.slope_above[:, None]

    def sloped(lam: Tensor) -> Tensor:
        return lam * torch.where(lam >= 0, below, above)

    lam = c.expand(len(u.low), *c.shape[-2:])
    for _ in range(40 if exact.structure == "full" else len(exact.blocks)):
        lam = c + sloped(lam) @ A
    mu = sloped(lam)
    beta = torch.where(lam >= 0, around_x.below[:, None], around_x.above[:, None])
    gain, left = e + mu @ B, c + mu @ A - lam
    assert float(left.abs().max()) < 1e-3
    on_inputs = gain.clamp_min(0) @ u.low[:, :, None] + gain.clamp_max(0) @ u.high[:, :, None]
    return on_inputs[:, :, 0] + mu @ b + (lam * beta).sum(2)


@pytest.mark.parametrize("blocks", [MIXED, same(Phi("relu"))], ids=["mixed", "relu"])
@pytest.mark.parametrize("structure", ["layered", "triangular", "full"])
def test_substitution_through_layers_is_that_on_matrices(structure, blocks):
    exact = implicit_model(structure, blocks)
    u = inputs(exact, 20).flatten(1)
    ball = around(u, torch.full((20,), 0.05, dtype=torch.float64))
    layers = prepared(equations_of(exact))
    found = None
    if structure == "full":
        found = equilibrium_boxes(layers[0], ball, start(layers[0], u, exact.certificate))
    walked = refined(layers, ball, found)
    wanted = differences(2, torch.zeros(20, dtype=torch.int64))[:, 1:]
    columns = [
        torch.cat(some, 1) for some in zip(*(a[:4] for a in walked.around[::-1]), strict=True)
    ]
    assert exact.d is not None
    C, D, d = exact.C.to_dense().detach(), exact.D.to_dense().detach(), exact.d.detach()
    twin = crown(exact, wanted @ C, wanted @ D, Lines(*columns), ball) + wanted @ d
    got = walked.margins(wanted)
    if structure == "full":  # what is left of the bracket is bounded, too
        assert (got <= twin + 1e-3).all() and (got >= twin - 1e-3).all()
        return
    assert (got >= twin - 1e-9).all()
    boxed = Substitution(layers, ball, walked.boxes).margins(wanted, deep=False)
    assert torch.allclose(got, torch.maximum(twin, boxed), atol=1e-9, rtol=0)


def test_a_refined_box_makes_the_next_one_smaller():
    exact = model("relu")
    layers = prepared(equations_of(exact))
    u = images(2).flatten(1)
    ball = around(u, torch.full((2,), 0.05, dtype=torch.float64))
    now = refined(layers, ball)
    for k, layer in enumerate(layers[1:-1], 1):
        box = layer.box([*(b.x for b in now.boxes[:k]), ball])
        assert (now.boxes[k].z.low >= box.low).all() and (now.boxes[k].z.high <= box.high).all()


def test_without_work_left_boxes_stay():
    layers = prepared(equations_of(model("relu")))
    ball = around(images(2).flatten(1), torch.full((2,), 0.05, dtype=torch.float64))
    plain = boxes(layers, ball)
    first = Substitution(layers, ball).beyond(plain[0].z)
    some = torch.tensor([0.0, 1e9], dtype=torch.float64)
    found = first.tighter(1, plain[1].z, some)
    assert torch.equal(found.low[0], plain[1].z.low[0]) and some[0] == 0
    assert (found.low[1] > plain[1].z.low[1]).any() and some[1] < 1e9


POOLS = [
    MaxPool((2, 5, 6), (3, 2), (2, 1), (1, 0), (1, 2)),
    MaxPool((3, 7), (3,), (2,), (1,), (1,), ceil=True),
    MaxPool((1, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1)),
]


@pytest.mark.parametrize("phi", POOLS, ids=str)
@pytest.mark.parametrize("width", [0.05, 2.0])
def test_lines_around_a_maximum_hold(phi, width):
    rows = torch.tensor(phi.shape).prod().item()
    random = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.rand(3, int(rows), generator=random, dtype=torch.float64)

    low = 4 * draw()
    z = Box(low, low + width * draw())
    table, found = windows(phi), lines(phi, z)
    assert found.entry is not None
    loose = unsettled(phi, z)
    assert not loose.all() if width < 1 else loose.any()
    for _ in range(50):
        at = z.low + draw() * (z.high - z.low)
        padded = torch.cat([at, torch.full((3, 1), -torch.inf, dtype=at.dtype)], 1)
        x = phi(at)
        assert torch.equal(padded[:, table].amax(2), x)
        entry = at.gather(1, found.entry)
        assert (found.slope_below * entry + found.below <= x).all()
        assert (x <= found.slope_above * entry + found.above).all()
    # where nothing is unsettled the lines meet
    settled = ~torch.cat([loose, torch.zeros(3, 1, dtype=torch.bool)], 1)[:, table].any(2)
    assert (found.slope_above[settled] == 1).all() and (found.above[settled] == 0).all()


def exact_margin(equations: StateEquations, u: Tensor) -> tuple[Fraction, Fraction]:
    """y_0 − y_1 at a point in rational numbers, and the sum of the sizes behind it."""
    s, size = ([Fraction(v) for v in u.tolist()] for _ in range(2))
    size = [abs(v) for v in size]
    for e in equations.layers:
        W, b = e.terms[0].weight.tolist(), e.bias.tolist()  # pyright: ignore
        z = [
            sum((Fraction(w) * v for w, v in zip(row, s, strict=True)), Fraction(c))
            for row, c in zip(W, b, strict=True)
        ]
        size = [
            sum((abs(Fraction(w)) * v for w, v in zip(row, size, strict=True)), abs(Fraction(c)))
            for row, c in zip(W, b, strict=True)
        ]
        s = [max(v, Fraction(0)) for v in z] if e.phi.name == "relu" else z
    return s[0] - s[1], size[0] + size[1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("phi", [nn.ReLU(), nn.Identity()], ids=["relu", "identity"])
def test_no_rounding_lifts_a_bound_above_the_exact_value(phi, seed):
    # sizes over ten orders of magnitude that cancel
    net = perceptron(phi, phi, phi)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            draw = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            parameter.copy_(draw * 10 ** (2 * torch.randn(draw.shape, generator=random).double()))
        last = net.get_submodule("7").get_parameter("weight")
        last[1] = last[0].nextafter(torch.zeros(7).double())  # the margin is all cancellation
    equations = equations_of(as_model(net, images()))
    u = images(1).flatten(1)
    layers = prepared(equations)
    wanted = differences(4, torch.zeros(1, dtype=torch.int64))[:, 1:2]
    value, size = exact_margin(equations, u[0])
    for box in (Box(u, u), around(u, torch.full((1,), 1e-13, dtype=torch.float64))):
        lower = refined(layers, box).margins(wanted)
        assert Fraction(lower.item()) <= value
    assert value - Fraction(refined(layers, Box(u, u)).margins(wanted).item()) < size * Fraction(
        1, 10**9
    )


@pytest.mark.parametrize("name", KEPT)
def test_operations_that_are_kept_are_refused_by_name(name):
    kept = {entry.split(": ")[1] for entry in KEPT[name]}
    with pytest.raises(InputError, match="no bounds are known of") as refused:
        certify(network(name), images(), torch.zeros(4, dtype=torch.int64), 0.1)
    assert any(operation in str(refused.value) for operation in kept)
