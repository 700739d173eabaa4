import itertools

import pytest
import torch
from torch import Tensor

from simplicit.outputs.path_norm import SMALL, path_norm, prices, shrink

N, P, Q = 4, 3, 2
FREE = torch.tensor([False] * (N + P) + [True])


def weights(seed: int = 0) -> Tensor:
    W = torch.randn(N + Q, N + P + 1, generator=torch.Generator().manual_seed(seed))
    W[:N, :N] = W[:N, :N].triu(1)
    return W.double()


def over_all_paths(W: Tensor, slopes: Tensor) -> float:
    """The slow twin: every input, every chain of states, every output."""
    total = float(W[N:, N : N + P].abs().sum())
    for length in range(1, N + 1):
        for chain in itertools.combinations(range(N), length):  # from the outputs down
            product = 1.0
            for i in chain:
                product *= float(slopes[i])
            for i, j in itertools.pairwise(chain):
                product *= abs(float(W[i, j]))
            into = float(W[chain[-1], N : N + P].abs().sum())
            total += product * into * float(W[N:, chain[0]].abs().sum())
    return total


def test_the_path_norm_is_the_sum_over_all_paths():
    slopes = torch.tensor([0.3, 1.0, 0.5, 0.7]).double()
    assert path_norm(weights(), slopes, FREE) == pytest.approx(over_all_paths(weights(), slopes))


@pytest.mark.parametrize("row", range(N + Q))
def test_a_rows_prices_are_its_part_of_the_path_norm(row):
    W, slopes = weights(), torch.tensor([0.3, 1.0, 0.5, 0.7]).double()
    down, up = prices(W, slopes, FREE)
    without = W.clone()
    without[row] = 0
    part = path_norm(W, slopes, FREE) - path_norm(without, slopes, FREE)
    assert float(down[row] * (up * W[row].abs()).sum()) == pytest.approx(part)
    assert up[-1] == 0


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
