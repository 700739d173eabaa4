"""Patterns in rows: they hold, and their weights are nearly the best that the pattern allows."""

from itertools import product

import pytest
import torch
from torch import Tensor

from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.sparsity.choice import METHODS, allot, choose
from simplicit.sparsity.pattern import UNSTRUCTURED, Blocks, NofM, Pattern
from simplicit.sparsity.refit import refit

CHANNELS, PLACES, ROWS = 8, 3, 6


def places(together: int) -> Tensor:
    channel, place = torch.arange(CHANNELS)[:, None], torch.arange(PLACES)
    return (channel // together * PLACES + place).flatten()


PATTERNS: dict[str, Pattern] = {
    "2:4": NofM(2, 4, places(4)),
    "1:4": NofM(1, 4, places(4)),
    "1:2": NofM(1, 2, places(2)),
    "2 x 1": Blocks(2, places(1)),
    "4 x 1": Blocks(4, places(1)),
    "1 x 2": Blocks(1, places(2)),
    "2 x 3": Blocks(2, places(3)),
}


def problem(seed: int = 0, N: int = CHANNELS * PLACES, K: int = ROWS) -> RowProblem:
    random = torch.Generator().manual_seed(seed)
    V = torch.randn(100, N, generator=random, dtype=torch.float64)
    V = V @ (torch.eye(N) + 0.3 * torch.randn(N, N, generator=random)).double()
    V = torch.cat([V, torch.ones(100, 1)], 1)
    W = torch.randn(K, N + 1, generator=random, dtype=torch.float64)
    scales = torch.cat([torch.ones(N), torch.zeros(1)]).double()
    return RowProblem(Gram.from_data(V, V @ W.T), Penalty(l1=1.0, scales=scales))


def holds(W: Tensor, name: str) -> bool:
    """Look entry by entry."""
    on = (W[:, :-1] != 0).view(ROWS, CHANNELS, PLACES)
    first, second = (int(n) for n in name.replace(" x ", ":").split(":"))
    if ":" in name:
        groups = on.split(second, 1)
        return all(int(part.sum(1).max()) <= first for part in groups)
    blocks = [b for rows in on.split(first) for b in rows.split(second, 1)]
    return all(len(block[..., p].unique()) == 1 for block in blocks for p in range(PLACES))


def loss(problem: RowProblem, W: Tensor) -> Tensor:
    return RowProblem(problem.gram, Penalty()).objective(W)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_a_pattern_holds_and_beats_the_largest_weights(method, name):
    pattern, own, plain = PATTERNS[name], 0.0, 0.0
    for seed in range(5):
        rows = problem(seed)
        keep = min(pattern.most(CHANNELS * PLACES), 12)
        W = choose(rows, [keep] * ROWS, method, pattern=pattern)
        assert holds(W, name)
        counts = W[:, :-1].count_nonzero(1)
        assert bool((counts <= keep).all()) and bool((counts > keep - 3).all())
        full = refit(rows, torch.ones_like(W, dtype=torch.bool))
        ranked = pattern.scores(full[:, :-1]).argsort(dim=1, descending=True, stable=True)
        support = torch.ones_like(W, dtype=torch.bool)
        support[:, :-1].scatter_(1, ranked[:, int(counts[0]) :], False)
        own += float(loss(rows, W).sum())
        plain += float(loss(rows, refit(rows, support)).sum())
    assert own <= plain


@pytest.mark.parametrize("method", METHODS)
def test_more_weights_than_n_of_m_are_first_those_of_the_pattern(method):
    pattern = PATTERNS["2:4"]
    W = choose(problem(), [17] * ROWS, method, pattern=pattern)
    groups = (W[:, :-1] != 0).view(ROWS, 2, 4, PLACES).sum(2)
    assert bool((groups >= 2).all()) and bool((groups.flatten(1).sum(1) == 17).all())


def supports(name: str, channels: int, count: int) -> list[list[int]]:
    """All supports of a row of a pattern on one place, with so many weights."""
    every = [[k for k, on in enumerate(bits) if on] for bits in product((0, 1), repeat=channels)]
    n, m = (int(part) for part in name.split(":"))
    return [
        s for s in every
        if len(s) == count and all(sum(k // m == g for k in s) <= n for g in range(channels // m))
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "count"), [("2:4", 4), ("2:4", 3), ("1:4", 2), ("1:2", 3)])
def test_elimination_is_near_the_best_of_all_supports_of_the_pattern(name, count):
    n, m = (int(part) for part in name.split(":"))
    pattern, best, found = NofM(n, m, torch.arange(8) // m), 0.0, 0.0
    for seed in range(8):
        row = problem(seed, N=8, K=1)
        W = choose(row, [count], "elimination", pattern=pattern)
        least = torch.inf
        for support in supports(name, 8, count):
            mask = torch.zeros_like(W, dtype=torch.bool)
            mask[:, [*support, 8]] = True
            least = min(least, float(loss(row, refit(row, mask))))
        own = float(loss(row, W))
        assert own >= least * (1 - 1e-9)
        best, found = best + least, found + own
    assert found <= 2 * best


def blocks_of(pattern: Blocks, K: int) -> list[Tensor]:
    """Masks of all blocks."""
    count = -(-K // pattern.rows) * pattern.count
    every = torch.eye(count).view(count, -1, pattern.count)
    return [pattern.spread(one, K) > 0 for one in every]


def test_blocks_are_near_the_best_choice_of_as_many():
    pattern, best, found = Blocks(2, torch.arange(8) // 2), 0.0, 0.0
    for seed in range(8):
        rows = problem(seed, N=8, K=2)
        W = choose(rows, [4, 4], "elimination", pattern=pattern)
        every, least = blocks_of(pattern, 2), torch.inf
        for one, two in product(range(4), repeat=2):
            mask = torch.ones_like(W, dtype=torch.bool)
            mask[:, :-1] = every[one] | every[two]
            if one < two:
                least = min(least, float(loss(rows, refit(rows, mask)).sum()))
        own = float(loss(rows, W).sum())
        assert own >= least * (1 - 1e-9)
        best, found = best + least, found + own
    assert found <= 2 * best


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wide", [False, True])
def test_a_budget_is_spent_over_rows_that_have_room(monkeypatch, method, name, wide):
    if wide:
        monkeypatch.setattr("simplicit.sparsity.choice.WIDE", 4)
    pattern, problems = PATTERNS[name], [problem(0), problem(1, K=5)]
    worth = [torch.rand(ROWS, generator=torch.Generator().manual_seed(2)), torch.ones(5)]
    room = 11 * pattern.most(CHANNELS * PLACES)
    for budget in (60, 66, 500):
        _, keep = allot(problems, worth, budget, method, patterns=[pattern] * 2)
        spent = sum(map(sum, keep))
        assert [len(own) for own in keep] == [6, 5]
        assert max(map(max, keep)) <= pattern.most(CHANNELS * PLACES)
        if isinstance(pattern, Blocks):
            assert min(budget, room) - 6 < spent <= min(budget, room)
            assert all(own == pattern.even(own) for own in keep)
        else:
            assert spent == min(budget, room)


def test_weights_of_a_row_that_the_outputs_hear_decide_for_its_block():
    rows, pattern = problem(K=2), Blocks(2, torch.arange(CHANNELS * PLACES))
    for method in METHODS:
        alone = choose(rows, [12, 12], method, pattern=UNSTRUCTURED)
        heard = choose(rows, [12, 12], method, pattern=pattern, worth=torch.tensor([1.0, 0.0]))
        assert torch.equal(heard[0] != 0, alone[0] != 0)
