"""Backward elimination of blocks against brute force, and against that of single weights."""

import pytest
import torch
from torch import Tensor

from simplicit.sparsity.elimination.of_blocks import Removals, eliminate_blocks
from simplicit.sparsity.elimination.of_rows import eliminate


def grams(seed: int = 0, N: int = 9, count: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    V = torch.randn(count, 50, N, generator=random, dtype=torch.float64)
    V = V @ torch.randn(N, N, generator=random, dtype=torch.float64)
    return V.mT @ V / 50 + 0.1 * torch.eye(N, dtype=torch.float64)


def weights(N: int, rows: int) -> Tensor:
    return torch.randn(rows, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def least(G: Tensor, W: Tensor, on: Tensor) -> float:
    """Loss ½ Σ (v − w)'G(v − w) of the best rows on a support."""
    loss = 0.0
    for k, w in enumerate(W):
        own, v = G[k % len(G)], torch.zeros_like(w)
        v[on] = torch.linalg.solve(own[on][:, on], (own @ w)[on])
        loss += float((v - w) @ own @ (v - w) / 2)
    return loss


@pytest.mark.parametrize("own", [1, 3])
@pytest.mark.parametrize(
    "block", [[0, 1, 2, 3, 4, 5, 6, 7, -1], [0, 2, 0, 2, 5, 5, 7, 5, -1], [1] * 8 + [-1]]
)
def test_every_removal_is_the_cheapest_and_costs_what_it_says(block, own):
    G, W, block = grams(count=own), weights(9, 3), torch.tensor(block)
    found = eliminate_blocks(torch.linalg.inv(G), W, block)
    left, loss = set(block.tolist()) - {-1}, 0.0
    for number, added, width in zip(found.order.tolist(), found.cost, found.width, strict=True):
        choices = {b: least(G, W, torch.isin(block, torch.tensor([*left - {b}, -1]))) for b in left}
        rates = {b: (value - loss) / int((block == b).sum()) for b, value in choices.items()}
        left.remove(number)
        assert rates[number] <= min(rates.values()) * (1 + 1e-8) + 1e-12
        assert choices[number] - loss == pytest.approx(float(added), rel=1e-7, abs=1e-12)
        assert width == (block == number).sum()
        loss = choices[number]
    assert not left


def test_blocks_of_one_weight_are_single_weights():
    G, W = grams(N=20), weights(20, 5)
    H, none = torch.linalg.inv(G[0]), torch.zeros(20, dtype=torch.bool)
    orders, costs = eliminate(H, W, none)
    for w, order, cost in zip(W, orders, costs, strict=True):
        found = eliminate_blocks(H[None], w[None], torch.arange(20))
        assert torch.equal(found.order, order)
        torch.testing.assert_close(found.cost, cost)


@pytest.mark.parametrize("width", [1, 3])
def test_updates_in_batches_are_exact(width):
    G, W, block = grams(N=150), weights(150, 2), torch.arange(150) // width
    found = eliminate_blocks(torch.linalg.inv(G), W, block, keep=12)
    for count in (1, 63 // width, 66 // width, 130 // width):
        on = torch.isin(block, found.order[count:])
        assert float(found.cost[:count].sum()) == pytest.approx(least(G, W, on), rel=1e-6)
    assert found.cost.isinf().sum() == 12 // width and found.width.sum() == 150


@pytest.mark.parametrize(("keep", "gone"), [(10, 0), (9, 1), (8, 1), (7, 2), (3, 3), (0, 4)])
def test_no_more_features_are_left_than_may_be(keep, gone):
    width = torch.tensor([2, 1, 4, 3])
    found = Removals(torch.arange(4), torch.ones(4), width, rows=2)
    assert found.gone(keep) == gone and found.features(2 * keep + 1) == int(width[gone:].sum())
    assert len(found.by_weight) == 20 and float(found.by_weight.sum()) == pytest.approx(4)
