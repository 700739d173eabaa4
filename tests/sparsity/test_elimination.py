"""Backward elimination against brute force."""

from concurrent.futures import ThreadPoolExecutor

import numba
import pytest
import torch
from torch import Tensor

from simplicit.convex.cholesky import factor
from simplicit.sparsity.elimination import of_rows, one_row
from simplicit.sparsity.elimination.of_rows import costs_among, eliminate
from simplicit.sparsity.pattern import NofM
from simplicit.system import machine_code


@pytest.fixture
def side_by_side(monkeypatch):
    """As on a device, or with a pattern."""
    monkeypatch.setattr(of_rows, "by_itself", lambda *_: False)


@pytest.fixture(autouse=True, params=["side by side", "each by itself"])
def _ways(request):
    if request.param == "side by side":
        request.getfixturevalue("side_by_side")


def problem(seed: int = 0, N: int = 9, K: int = 11) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    V = torch.randn(50, N, generator=random, dtype=torch.float64)
    V = V @ torch.randn(N, N, generator=random, dtype=torch.float64)
    return V.T @ V / 50, torch.randn(K, N, generator=random, dtype=torch.float64)


def least(G: Tensor, w: Tensor, support: list[int]) -> float:
    """Loss ½ (v − w)'G(v − w) of the best v on a support."""
    v = torch.zeros_like(w)
    v[support] = torch.linalg.solve(G[support][:, support], (G @ w)[support])
    return float((v - w) @ G @ (v - w) / 2)


@pytest.mark.parametrize("protected", [[], [3], [0, 8]])
def test_every_removal_is_the_cheapest_and_costs_what_it_says(protected):
    G, W = problem()
    mask = torch.zeros(9, dtype=torch.bool)
    mask[protected] = True
    orders, costs = eliminate(torch.linalg.inv(G), W, mask)
    for w, order, cost in zip(W, orders.tolist(), costs, strict=True):
        support, loss = list(range(9)), 0.0
        for j, added in zip(order, cost.tolist(), strict=True):
            choices = {
                i: least(G, w, [s for s in support if s != i])
                for i in support
                if i not in protected
            }
            support.remove(j)
            assert choices[j] <= min(choices.values()) * (1 + 1e-8) + 1e-12
            assert choices[j] - loss == pytest.approx(added, rel=1e-7, abs=1e-12)
            loss = choices[j]
        assert sorted(support) == protected


def test_stopping_early_is_the_beginning_of_the_same_order():
    G, W = problem()
    none = torch.zeros(9, dtype=torch.bool)
    all_orders, all_costs = eliminate(torch.linalg.inv(G), W, none)
    orders, costs = eliminate(torch.linalg.inv(G), W, none, keep=4)
    assert torch.equal(orders, all_orders[:, :5]) and torch.equal(costs, all_costs[:, :5])
    assert eliminate(torch.linalg.inv(G), W, none, keep=9)[0].shape == (11, 0)


def test_rows_do_not_depend_on_their_neighbours(monkeypatch):
    G, W = problem()
    none = torch.zeros(9, dtype=torch.bool)
    orders, _ = eliminate(torch.linalg.inv(G), W, none)
    monkeypatch.setattr("simplicit.sparsity.elimination.of_rows.MOST", 4)
    assert torch.equal(eliminate(torch.linalg.inv(G), W, none)[0], orders)
    for k in range(len(W)):
        assert torch.equal(eliminate(torch.linalg.inv(G), W[k : k + 1], none)[0][0], orders[k])


def test_updates_in_blocks_are_exact():
    G, W = problem(N=100, K=9)
    none = torch.zeros(100, dtype=torch.bool)
    orders, costs = eliminate(torch.linalg.inv(G + 0.1 * torch.eye(100)), W, none, keep=10)
    assert orders.shape == (9, 90)
    G = G + 0.1 * torch.eye(100)
    for w, order, cost in zip(W, orders.tolist(), costs, strict=True):
        for removed in (1, 63, 64, 65, 66, 90):
            left = [j for j in range(100) if j not in order[:removed]]
            assert float(cost[:removed].sum()) == pytest.approx(least(G, w, left), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", ["equal features", "infinite", "no number"])
def test_whatever_the_numbers_are_each_feature_goes_once(bad, dtype):
    last = torch.arange(40) == 0
    for seed in range(20):
        G, W = problem(seed, N=40, K=3)
        if bad == "equal features":
            G[:, 7:12], G[7:12] = G[:, 1:6].clone(), G[1:6].clone()
            G[7:12, 7:12] = G[1:6, 1:6]
            H = torch.cholesky_inverse(factor(G))
        else:
            H = torch.linalg.inv(G)
            H[3, 3] = W[1, 5] = torch.inf if bad == "infinite" else torch.nan
        orders, costs = eliminate(H.to(dtype), W.to(dtype), last, keep=2)
        assert orders.shape == costs.shape == (3, 37)
        for order in orders.tolist():
            assert len({*order, 0}) == 38 and set(order) < set(range(40))


def test_no_rows_are_no_obstacle():
    G, W = problem()
    none = torch.zeros(9, dtype=torch.bool)
    orders, costs = eliminate(torch.linalg.inv(G), W[:0], none)
    assert orders.shape == costs.shape == (0, 9)


@pytest.mark.parametrize(("n", "m", "N"), [(2, 4, 13), (1, 4, 161), (1, 2, 9)])
def test_a_pattern_holds_at_every_removal_and_the_cheapest_that_it_allows_goes(n, m, N):
    G, W = problem(N=N)
    G = G + 0.1 * torch.eye(N)
    bias = torch.arange(N) == N - 1
    pattern = NofM(n, m, torch.arange(N - 1) // m)
    orders, costs = eliminate(torch.linalg.inv(G), W, bias, pattern.most(N - 1), pattern=pattern)
    assert orders.shape[1] == (N - 1) // m * (m - n) and costs.isfinite().all()
    gone = torch.zeros(len(W), N, dtype=torch.bool).scatter(1, orders, True)
    counts = (~gone[:, : (N - 1) // m * m]).unflatten(1, (-1, m)).sum(2)
    assert (counts == n).all() and not gone[:, -1].any()
    w, order = W[0], orders[0].tolist()
    for t in {0, 1, len(order) // 2}:
        left = [j for j in range(N) if j not in order[:t]]
        mask = torch.zeros(1, N, dtype=torch.bool)
        mask[0, order[:t]] = True
        may = pattern.open(mask[:, :-1])[0].tolist() + [False]
        prices = {j: least(G, w, [i for i in left if i != j]) for j in left if may[j]}
        assert prices[order[t]] <= min(prices.values()) * (1 + 1e-8) + 1e-12


def test_rows_with_candidates_of_their_own_are_priced_as_if_alone(monkeypatch):
    G, W = problem(N=150, K=12)
    G = G + 0.1 * torch.eye(150)
    R = W @ G
    R[4] = 0.0  # whose prices are those of what fills it up
    sizes = [150, 4, 117, 64, 149, 11, 3, 128, 22, 130, 65, 6]
    drawn = torch.Generator().manual_seed(3)
    candidates = [torch.randperm(150, generator=drawn)[:n].sort().values for n in sizes]
    together = costs_among(G, R, candidates, 3)
    monkeypatch.setattr("simplicit.sparsity.elimination.of_rows.MOST", 2)
    with ThreadPoolExecutor(2) as executor:
        for few, many in zip(costs_among(G, R, candidates, 3, executor), together, strict=True):
            assert torch.equal(few, many)
    for r, columns, found in zip(R, candidates, together, strict=True):
        own = G[columns][:, columns]
        alone = torch.linalg.solve(own, r[columns])[None]
        none = torch.zeros(len(columns), dtype=torch.bool)
        wanted = eliminate(torch.linalg.inv(own), alone, none, 3)[1][0]
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
    assert costs_among(G, R[:0], [], 3) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("side_by_side")
def test_a_rowby_itself_loses_what_it_loses_beside_others(dtype):
    G, W = problem(N=150, K=3)
    H = torch.linalg.inv(G + 0.1 * torch.eye(150)).to(dtype)
    H, W = (H + H.T) / 2, W.to(dtype)
    last = torch.arange(150) == 149
    orders, costs = eliminate(H, W, last, keep=5)
    for w, order, cost in zip(W, orders, costs, strict=True):
        own, prices = one_row.eliminate(H, w, last, 5)
        assert prices.dtype == dtype and len(own) == 144 and 149 not in own.tolist()
        torch.testing.assert_close(prices.sum(), cost.sum(), rtol=1e-3, atol=0)
        if dtype == torch.float64:
            assert torch.equal(own, order)
            torch.testing.assert_close(prices, cost)


def test_machine_code_that_cannot_be_kept_is_made_for_this_process_alone(monkeypatch):
    compile_, asked = numba.njit, []

    def refusing(*arguments, **options):
        asked.append(options.get("cache", False))
        if asked[-1]:
            raise OSError(28, "No space left on device")
        return compile_(*arguments, **options)

    monkeypatch.setattr(machine_code.numba, "njit", refusing)
    machine_code._compiled.cache_clear()
    G, W = problem(N=100)
    H = torch.linalg.inv(G + 0.1 * torch.eye(100))
    found = one_row.eliminate(H, W[0], torch.zeros(100, dtype=torch.bool), 10)[1]
    assert asked == [True, False, True, False]
    monkeypatch.undo()
    machine_code._compiled.cache_clear()
    wanted = one_row.eliminate(H, W[0], torch.zeros(100, dtype=torch.bool), 10)[1]
    assert torch.equal(found, wanted)
