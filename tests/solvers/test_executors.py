"""Who solves the tiles changes no bit: this thread, others, or other processes."""

import time
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest
import torch

import loop_suite
from cases import LOSSES, features, normal, uniform
from simplicit.convex.duality import Loss
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.convex.shared import ScaledGram
from simplicit.convex.solution import Solution, Status
from simplicit.solvers import Progress, Settings, solve

ROWS = 150


@pytest.fixture(autouse=True)
def _everything_is_handed_out(monkeypatch):
    monkeypatch.setattr("simplicit.workers.run.LIGHT", 0.0)


def same(one: Solution, two: Solution) -> bool:
    """Bit for bit; the gap of the bad row is NaN."""
    names = [status is Status.INVALID_INPUT for status in one.status]
    good = (~torch.tensor(names)).nonzero()[:, 0]
    return (
        one.status == two.status
        and torch.equal(one.W, two.W)
        and loop_suite.same(one.rows(good), two.rows(good))
    )


def problem(loss: Loss = "squared") -> RowProblem:
    """Three tiles, among them rows whose radius is infinite, or 0, and one that is not finite."""
    V, T = features(60, 20, 1.5, seed=0), normal(60, ROWS, seed=1)
    V[:, -1] = 1.0
    T[0, 77] = torch.nan
    l1 = 10 ** uniform(ROWS, seed=2, low=-4, high=-1)
    scales = torch.ones(20).double()
    scales[-1] = 0.0
    radius = torch.full((ROWS,), 0.7).double()
    radius[::50], radius[1::50] = torch.inf, 0.0
    l1[2::50] = 0.0
    gram = Gram.from_data(V, T)
    return RowProblem(gram, Penalty(l1=l1, scales=scales), Ball(slice(0, 12), radius), loss)


def check_bits(rows: RowProblem, settings: Settings, processes: Executor) -> Solution:
    one = solve(rows, tol=1e-7, workers=1, settings=settings)
    assert one.solved.sum() >= len(one.W) - 1
    with ThreadPoolExecutor(3) as threads:
        for executor in (threads, processes):
            other = solve(rows, tol=1e-7, executor=executor, settings=settings)
            assert same(one, other) and torch.equal(one.iterations, other.iterations)
    return one


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_bits_by_one_by_threads_and_by_processes(loss, processes):
    one = check_bits(problem(loss), Settings(), processes)
    again = solve(problem(loss), tol=1e-9, warm_start=one, workers=1)
    assert same(again, solve(problem(loss), tol=1e-9, warm_start=one, executor=processes))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_bits_by_working_sets(loss, processes):
    """Some rows need more than a third of the features: they are solved on all of them."""
    few = problem(loss).select(torch.tensor([0, 1, 2, 3, 77, 4]))
    check_bits(few, Settings(large=0, first_set=4, share=3, tile=2), processes)


def test_a_callback_hears_of_rows_that_another_process_solves(processes):
    seen: list[Progress] = []
    solution = solve(problem(), tol=1e-7, executor=processes, callback=seen.append)
    gaps = {k: g for event in seen for k, g in zip(event.rows.tolist(), event.gap, strict=True)}
    assert sorted(gaps) == list(range(ROWS))
    assert seen[-1].solved == seen[-1].total == ROWS
    assert all(gaps[k] <= 1e-7 for k in solution.solved.nonzero()[:, 0].tolist())


def test_a_callback_stops_what_has_not_begun_elsewhere(processes):
    rows = problem()
    small = Settings(tile=8)
    stopped = solve(rows, tol=1e-7, executor=processes, settings=small, callback=lambda _: True)
    assert set(stopped.status) == {Status.SOLVED, Status.INTERRUPTED, Status.INVALID_INPUT}
    whole = solve(rows, tol=1e-7, workers=1)
    assert same(whole, solve(rows, tol=1e-7, warm_start=stopped, executor=processes))


@pytest.mark.parametrize("why", [ValueError, KeyboardInterrupt])
def test_an_error_ends_the_tiles_of_other_threads(why):
    """They would go on for ever."""

    def fail(progress: Progress) -> None:
        if 0 in progress.rows:
            raise why

    with ThreadPoolExecutor(3) as threads, pytest.raises(why):
        solve(problem(), tol=0.0, max_iterations=10**9, callback=fail, executor=threads)


def test_the_time_limit_holds_in_other_processes(processes):
    solution = solve(problem(), tol=1e-9, time_limit=0.0, executor=processes)
    assert Status.TIME_LIMIT in solution.status
    before = time.monotonic()
    solve(problem(), tol=0.0, max_iterations=10**9, time_limit=0.5, executor=processes)
    assert time.monotonic() - before < 20


def test_a_gram_is_made_once_in_each_process(processes):
    """Pieces of one Gram find the copy that the first of them brought, with its inverses."""
    shared = ScaledGram(problem())
    repeated = [processes.submit(met_before, shared).result() for _ in range(6)]
    assert repeated.count(False) <= 2


MET: list[ScaledGram] = []


def met_before(shared: ScaledGram) -> bool:
    MET.append(shared)
    return any(shared is other for other in MET[:-1])
