import pytest
import torch

from simplicit.units.elimination import Reader, Use, eliminate


def layer(seed, K=5, units=(0, 0, 1, 1, 2, 3, 3, 3, -1), rows=(-1, 7, 8, -1, 9)):
    """Rows that read the units, and write others."""
    generator = torch.Generator().manual_seed(seed)
    d = len(units)
    V = torch.randn(40, d, generator=generator, dtype=torch.float64)
    T = V @ torch.randn(d, K, generator=generator, dtype=torch.float64)
    T += torch.randn(40, K, generator=generator, dtype=torch.float64)
    g = torch.randn(K + 2, K, generator=generator, dtype=torch.float64)
    G, R, S = V.T @ V / 40, T.T @ V / 40, g.T @ g
    return G, R, S, torch.tensor(rows), torch.tensor(units)


def least(G, R, S, rows, units, gone):
    """Slow twin: the loss that is left, by least squares of the rows that count."""
    on = ~torch.isin(units, torch.tensor([*gone, 99]))
    count = ~torch.isin(rows, torch.tensor([*gone, 99]))
    best = torch.linalg.solve(G, R.T).T
    W = torch.zeros_like(best)
    W[:, on] = torch.linalg.solve(G[on][:, on], R[:, on].T).T
    E = (best - W)[count]
    return float(torch.trace(S[count][:, count] @ E @ G @ E.T)) / 2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("before", [(), (1,), (3, 8), (7, 0)])
def test_a_cost_is_what_least_squares_without_the_unit_add(seed, before):
    reader, gone = Reader(*layer(seed)), list(before)
    for unit in before:
        assert reader.hears(unit)
        reader.remove(unit)
    costs = dict(zip(reader.units.tolist(), reader.costs().tolist(), strict=True))
    at = least(*layer(seed), gone)
    for unit in {0, 1, 2, 3} - set(before):
        assert costs[unit] == pytest.approx(least(*layer(seed), [*gone, unit]) - at, rel=1e-8)
    assert all(costs[unit] == 0 for unit in {0, 1, 2, 3} & set(before))


def chain(seed):
    """Two layers behind one another: units 0 to 3, then 7 to 9."""
    first = layer(seed)
    second = layer(seed + 10, 4, (7, 8, 8, 9, -1), (-1, -1, -1, -1))
    uses = [Use(first[3], first[4], 9, 2.0), Use(second[3], second[4], 5, 1.0)]
    return [first, second], uses


def left(uses, gone):
    def count(units):
        return int((~torch.isin(units, torch.tensor([*gone, 99]))).sum())

    return sum(u.worth * count(u.rows) * count(u.features) for u in uses)


@pytest.mark.parametrize("seed", range(4))
def test_each_removal_is_the_cheapest_for_what_it_saves(seed):
    layers, uses = chain(seed)
    order = eliminate(10, [Reader(*one) for one in layers], uses, 0.0)
    assert order.left == [left(uses, order.units[: k + 1]) for k in range(len(order.units))]
    for k, unit in enumerate(order.units):
        gone = order.units[:k]
        # what rows that go with a unit have lost is no gain: costs are of the rows that are left
        prices = {}
        for other in {0, 1, 2, 3, 7, 8, 9} - set(gone):
            cost = 0.0
            for G, R, S, rows, units in layers:
                counted = rows.masked_fill(torch.isin(rows, torch.tensor([*gone, 99])), 99)
                one = G, R, S, torch.where(counted == 99, 99, -1), units
                cost += least(*one, [*gone, other]) - least(*one, gone)
            prices[other] = cost / (left(uses, gone) - left(uses, [*gone, other]))
        assert prices[unit] <= min(prices.values()) * (1 + 1e-6) + 1e-12
        saved = left(uses, gone) - left(uses, [*gone, unit])
        assert order.costs[k] / saved == pytest.approx(prices[unit], rel=1e-6, abs=1e-10)


def test_it_stops_at_the_goal_and_leaves_no_layer_empty():
    layers, uses = chain(0)
    whole = sum(use.whole for use in uses)
    half = eliminate(10, [Reader(*one) for one in layers], uses, whole / 2)
    assert half.left[-1] <= whole / 2 < ([whole, *half.left])[-2]
    every = eliminate(10, [Reader(*one) for one in layers], uses, 0.0)
    assert every.units[: len(half.units)] == half.units
    rows = uses[0].rows
    only = Use(rows[rows >= 0], uses[0].features, 9, 1.0)
    order = eliminate(10, [Reader(*layers[1])], [only], 0.0)
    assert len(set(order.units) & set(only.rows.tolist())) == len(only.rows) - 1
