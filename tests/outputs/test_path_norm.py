import itertools

import pytest
import torch
from torch import Tensor, nn

from conv_networks import images
from conv_networks import structured as read
from example_networks import Net, captured, example, seeded
from simplicit.calibration.rows import rows_of
from simplicit.calibration.structure import structured
from simplicit.capture.read import capture
from simplicit.equations.matrices import from_matrices
from simplicit.equations.network import StateEquations
from simplicit.equations.phi import Phi
from simplicit.equations.stacked import Block
from simplicit.errors import InputError
from simplicit.outputs.path_norm import SMALL, path_norm, prices, shrink

N, P, Q = 4, 3, 2
BLOCKS = [Block(f"{k}", 1, Phi("relu")) for k in reversed(range(N))]


def matrices(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W = torch.randn(N + Q, N + P, generator=torch.Generator().manual_seed(seed)).double()
    W[:N, :N] = W[:N, :N].triu(1)
    return W[:N, :N], W[:N, N:], W[N:, :N], W[N:, N:]


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> StateEquations:
    A, B, C, D = (M.to(dtype) for M in matrices(seed))
    b, d = A.new_ones(N), A.new_ones(Q)  # biases are on no path
    return from_matrices(
        A, B, C, D, b, d, blocks=BLOCKS, structure="triangular", input_shape=(P,), nonzeros=40
    )


def in_order(slopes: Tensor) -> list[Tensor]:
    """One number a layer, in forward order; x begins with the last layer."""
    return list(slopes.flip(0).split(1))


def over_all_paths(W: tuple[Tensor, Tensor, Tensor, Tensor], slopes: Tensor) -> float:
    """The slow twin: every input, every chain of states, every output."""
    A, B, C, D = W
    n, total = len(A), float(D.abs().sum())
    for length in range(1, n + 1):
        for chain in itertools.combinations(range(n), length):  # from the outputs down
            product = 1.0
            for i in chain:
                product *= float(slopes[i])
            for i, j in itertools.pairwise(chain):
                product *= abs(float(A[i, j]))
            total += product * float(B[chain[-1]].abs().sum()) * float(C[:, chain[0]].abs().sum())
    return total


SLOPES = torch.tensor([0.3, 1.0, 0.5, 0.7]).double()


def test_the_path_norm_is_the_sum_over_all_paths():
    found = path_norm(network(), in_order(SLOPES))
    assert found == pytest.approx(over_all_paths(matrices(), SLOPES))


def test_a_network_in_single_precision_is_summed_in_double():
    A, B, C, D = (M.float().double() for M in matrices())
    exact = over_all_paths((A, B, C, D), SLOPES)
    equations = network(dtype=torch.float32)
    assert path_norm(equations, in_order(SLOPES)) == pytest.approx(exact, rel=1e-12)
    assert {t.weight.dtype for e in prices(equations, in_order(SLOPES)) for t in e.terms} == {
        torch.float64
    }


def without(equations: StateEquations, rows, group: int, k: int) -> StateEquations:
    """The network with one row empty."""
    layers = list(equations.layers)
    W = rows.weights(layers[rows.index]).clone()
    W[group, k] = 0
    layers[rows.index] = rows.put(layers[rows.index], W, W.new_zeros(W.shape[:2]))
    return StateEquations(tuple(layers[:-1]), layers[-1], equations.input_shape, equations.nonzeros)


def check_prices(equations: StateEquations, slopes) -> None:
    """Each row's weights times their prices are its part of the path norm."""
    priced = prices(equations, slopes)
    whole = path_norm(equations, slopes)
    for rows in rows_of(equations):
        W = rows.weights(equations.layers[rows.index]).double()
        price = rows.weights(priced[rows.index])
        assert (price >= 0).all()
        for group, k in itertools.product(*map(range, W.shape[:2])):
            part = whole - path_norm(without(equations, rows, group, k), slopes)
            found = float((price[group, k] * W[group, k].abs()).sum())
            assert found == pytest.approx(part, rel=1e-9, abs=1e-9 * whole)


def test_a_rows_prices_are_its_part_of_the_path_norm():
    check_prices(network(), in_order(SLOPES))


@pytest.mark.parametrize("name", ["concatenation", "residual", "batch norm", "broadcast"])
def test_prices_of_networks_of_matrices(name):
    """In `concatenation` one weight reads two sources, through fixed maps."""
    equations = structured(captured(name), "triangular")
    slopes = [torch.rand(e.states).double() for e in equations.hidden]
    check_prices(equations, slopes)


@pytest.mark.parametrize(
    "name", ["tokens", "grouped, dilated, uneven", "in place, reused", "one dimension"]
)
def test_prices_of_convolutions_and_tokens(name):
    equations = read(name)
    slopes = [0.5 + torch.rand(e.states).double() for e in equations.hidden]
    check_prices(equations, slopes)


def test_a_weight_that_is_zero_has_its_price():
    equations = network()
    rows = rows_of(equations)[1]
    priced = rows.weights(prices(equations, in_order(SLOPES))[rows.index])
    empty = without(equations, rows, 0, 0)
    again = rows.weights(prices(empty, in_order(SLOPES))[rows.index])
    torch.testing.assert_close(again, priced)
    assert (again > 0).any()


def test_a_convolution_has_the_path_norm_of_its_matrices():
    net = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2, 2), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(8, 3)),
        )
    )
    equations = capture(net, images(2, (2, 3, 3)))
    slopes = [torch.rand(e.states).double() for e in equations.hidden]
    (A, B, C, D, *_), x = equations.dense(), torch.cat(slopes[::-1])
    inverse = torch.linalg.inv(torch.eye(len(A)).double() - x[:, None] * A.abs())
    exact = (C.abs() @ inverse @ (x[:, None] * B.abs()) + D.abs()).sum()
    assert path_norm(equations, slopes) == pytest.approx(float(exact))
    check_prices(equations, slopes)


def pooled(pool: nn.Module, states: int) -> StateEquations:
    make = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(3, 2, 1, bias=False), pool, nn.ReLU(), nn.Flatten(), nn.Linear(states, 2)
    )
    net = seeded(make)
    with torch.no_grad():
        net.get_parameter("4.weight").fill_(1.0)
    return capture(net, images(2))


@pytest.mark.parametrize(
    ("pool", "states"),
    [
        (nn.MaxPool2d(2), 18),
        (nn.MaxPool2d(3, 2, 1), 18),
        (nn.MaxPool2d(4, 3, ceil_mode=True), 8),
        (nn.MaxPool2d(2, dilation=2), 8),
    ],
)
def test_what_is_equal_in_a_window_passes_a_maximum_as_it_is(pool, states):
    """Also at the edges, where a window has fewer entries."""
    equations = pooled(pool, states)
    slopes = [torch.ones(e.states).double() if isinstance(e.phi, Phi) else None
              for e in equations.hidden]  # fmt: skip
    W = equations.layers[0].terms[0].weight
    one = float(W.abs().sum())  # a position's channels together
    assert path_norm(equations, slopes) == pytest.approx(states / 2 * one * 2)
    check_prices(equations, slopes)


def test_an_operation_that_is_kept_is_refused_by_name():
    equations = read("group norm")
    slopes = [torch.ones(e.states).double() if isinstance(e.phi, Phi) else None
              for e in equations.hidden]  # fmt: skip
    for question in (path_norm, prices):
        with pytest.raises(InputError, match="robustness: no slope is known of group_norm"):
            question(equations, slopes)


def test_a_weight_that_layers_share_pays_for_all_its_uses():
    net = Net(
        lambda s, x: s.layers[1](s.layers[0](s.layers[0](x).relu()).relu()),
        *(nn.Linear(6, 6), nn.Linear(6, 3)),
    ).double()
    equations, slopes = capture(net, example()), [torch.ones(6).double()] * 2
    W = equations.layers[0].terms[0].weight.abs().requires_grad_()
    V = equations.layers[2].terms[0].weight.abs()
    (expected,) = torch.autograd.grad((V @ W @ W).sum(), W)
    for equation in prices(equations, slopes)[:2]:
        torch.testing.assert_close(equation.terms[0].weight, expected)


def test_shrink_finds_the_minimum_of_a_lasso():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(200, 6, generator=generator).double()
    H, moment = X.T @ X / 200, X.T @ (X @ torch.tensor([2.0, -1, 0, 0, 0.5, 0]).double()) / 200
    price = torch.full((6,), 0.2).double()

    def objective(w: Tensor) -> float:
        return float(w @ H @ w / 2 - moment @ w + price @ w.abs())

    w = torch.linalg.solve(H, moment)
    values = [objective(w)]
    for _ in range(30):
        w = shrink(H, moment, w, price)
        values.append(objective(w))
    assert all(b <= a + 2 * SMALL for a, b in itertools.pairwise(values))
    gradient = H @ w - moment
    on = w != 0
    assert torch.allclose(gradient[on], -(price * w.sign())[on], atol=1e-3)
    assert (gradient[~on].abs() <= price[~on] + 1e-3).all() and not on.all()


def test_units_of_features_cancel():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(200, 6, generator=generator).double()
    H, moment = X.T @ X / 200, X.T @ (X @ torch.tensor([2.0, -1, 0, 0, 0.5, 0]).double()) / 200
    units = torch.tensor([1e9, 1e-9, 1e6, 1e-6, 255, 1]).double()
    w, price = torch.linalg.solve(H, moment), torch.full((6,), 0.2).double()
    other = shrink(H * units * units[:, None], moment * units, w / units, price * units)
    torch.testing.assert_close(other * units, shrink(H, moment, w, price), atol=1e-9, rtol=1e-9)


def test_without_a_price_nothing_shrinks():
    H = torch.diag(torch.tensor([1.0, 2.0]).double())
    tiny = torch.tensor([SMALL / 10, 1.0]).double()
    assert torch.allclose(shrink(H, H @ tiny, tiny, torch.zeros(2).double()), tiny)
