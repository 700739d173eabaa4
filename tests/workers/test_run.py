"""Work in pieces gives the same answers by threads, by processes, and here."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial

import pytest
import torch
from threadpoolctl import threadpool_info

from simplicit.errors import InputError, WorkerError
from simplicit.system import threads
from simplicit.workers.executors import count, pool
from simplicit.workers.run import AHEAD, IN_FLIGHT, run


def product(seed: int, n: int = 40) -> torch.Tensor:
    time.sleep(0.02 * (seed % 3))  # later pieces end first
    A = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return A @ A.T


def scaled(pair: tuple[torch.Tensor, float]) -> torch.Tensor:
    M, factor = pair
    return factor * M.sum(0)


def fails_at(bad: tuple[int, ...], piece: int) -> int:
    if piece in bad:
        time.sleep(0.1 / (1 + piece))
        raise ValueError(f"piece {piece}")
    return piece


def torch_threads(_: int) -> int:
    return torch.get_num_threads()


@pytest.fixture(params=["here", "threads", "processes"])
def executor(request: pytest.FixtureRequest, processes: Executor) -> Iterator[Executor | None]:
    if request.param == "threads":
        with ThreadPoolExecutor(3) as made:
            yield made
    else:
        yield processes if request.param == "processes" else None


def test_the_same_answers_in_the_order_of_the_pieces(executor):
    found = list(run(partial(product, n=33), range(7), executor))
    assert all(torch.equal(a, product(i, 33)) for i, a in enumerate(found))
    assert len(found) == 7


def test_pieces_may_share_a_large_matrix(executor):
    M = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    found = list(run(scaled, ((M, float(i)) for i in range(9)), executor))
    assert all(torch.equal(a, i * M.sum(0)) for i, a in enumerate(found))


def test_the_first_error_in_the_order_of_the_pieces_is_raised(executor):
    answers = run(partial(fails_at, (3, 5)), range(20), executor)
    seen = []
    with pytest.raises(ValueError, match="piece 3"):
        seen.extend(answer for answer in answers)
    assert seen in ([0, 1, 2], [])


def test_workers_use_as_many_torch_threads_as_the_caller(executor):
    before = torch.get_num_threads()
    try:
        for wanted in (1, 2):
            torch.set_num_threads(wanted)
            assert set(run(torch_threads, range(4), executor)) == {wanted}
    finally:
        torch.set_num_threads(before)


def whose(_: int) -> int:
    return os.getpid()


def too_large(_: int) -> int:
    raise MemoryError


def test_a_piece_without_room_is_tried_again_and_then_named():
    with (
        ThreadPoolExecutor(2) as executor,
        pytest.raises(WorkerError, match=r"piece 0 of .*too_large ended 2 workers \(MemoryError\)"),
    ):
        list(run(too_large, range(1), executor))


def products_on(_: int) -> set[int]:
    info = threadpool_info()
    return {pool["num_threads"] for pool in info if "numpy" in pool["filepath"]}


def test_numpy_has_one_thread_in_other_processes(processes):
    assert [*run(products_on, range(3), processes)] == [{1}] * 3


def test_light_pieces_stay_in_this_process(processes):
    assert os.getpid() not in run(whose, range(4), processes)
    assert set(run(whose, range(4), processes, work=1.0)) == {os.getpid()}


def test_what_costs_most_goes_first_and_answers_keep_their_order():
    begun = []

    def piece(i: int) -> int:
        begun.append(i)
        return -i

    with ThreadPoolExecutor(1) as executor:
        found = list(run(piece, [3, 1, 4, 1, 5], executor, cost=float))
    assert found == [-3, -1, -4, -1, -5] and begun == [5, 4, 3, 1, 1]


def test_no_pieces(executor):
    assert list(run(torch_threads, [], executor)) == []


def test_pieces_are_taken_when_they_are_needed():
    taken, asked = [], 0

    def pieces() -> Iterator[int]:
        for i in range(50):
            taken.append(i)
            yield i

    with ThreadPoolExecutor(2) as executor:
        for _ in run(abs, pieces(), executor):
            asked += 1
            assert len(taken) <= asked + 2 * (AHEAD + IN_FLIGHT)
    assert asked == 50
    for _ in zip(range(3), run(abs, pieces(), None), strict=False):
        pass
    assert len(taken) <= 54


@pytest.mark.parametrize("why", [ValueError, KeyboardInterrupt])
def test_what_has_not_begun_is_cancelled(why):
    begun, gate = [], threading.Event()

    def piece(i: int) -> int:
        begun.append(i)
        if i == 0:
            raise why
        gate.wait(5)
        return i

    class Watched(ThreadPoolExecutor):
        futures: list[Future] = []

        def submit(self, *args, **kwargs):
            self.futures.append(super().submit(*args, **kwargs))
            return self.futures[-1]

    with Watched(1) as executor:
        with pytest.raises(why):
            list(run(piece, range(20), executor))
        gate.set()
    assert len(executor.futures) <= IN_FLIGHT + 1
    assert all(future.cancelled() for future in executor.futures[len(begun) :])
    assert len(begun) <= 2


def test_answers_no_longer_asked_for_are_cancelled():
    begun = []
    with ThreadPoolExecutor(1) as executor:
        answers = run(lambda i: begun.append(i) or time.sleep(0.05), range(30), executor)
        next(answers)
        answers.close()
    assert len(begun) <= 2


def test_no_number_of_workers_means_all_processors(monkeypatch):
    monkeypatch.setattr(threads, "available", lambda: 3)
    assert [count(n) for n in (None, 1, 2, 3, 100)] == [3, 1, 2, 3, 3]
    for n in (0, -1):
        with pytest.raises(InputError, match=f"workers={n}: must be at least 1"):
            count(n)
    with pool(1) as alone, pool(2) as two, pool() as three:
        assert alone is None
        with pool(2, pieces=1) as needless:
            assert needless is None
        assert [p._max_workers for p in (two, three)] == [2, 3]  # pyright: ignore
