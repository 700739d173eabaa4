"""Simulated schedules: bounds that hold for any list, a slow twin, and known ones."""

import random
from math import inf

import pytest

from simplicit.lab.plan.makespan import FREE, Link, lost, makespan, returned, sent
from simplicit.matching.expected.stage import Pieces, Stage

COUNTS = (1, 2, 3, 7, 16, 64, 500)
LINKS = (FREE, Link(1e6, 0.0), Link(1e6, 0.01, 1e-4), Link(inf, 0.5), Link(inf, 0.0, 0.03))


def stage(seed: int) -> Stage:
    draw = random.Random(seed)
    pieces = tuple(
        Pieces(
            draw.randint(1, draw.choice((1, 20, 600))),
            1,
            draw.choice((0.01, 1.0)) * draw.random(),
            draw.choice((0.0, 1e4)),
            draw.choice((0.0, 1e5)),
        )
        for _ in range(draw.randint(1, 5))
    )
    alone, once, shared = (draw.choice((0.0, unit * draw.random())) for unit in (1.0, 1.0, 1e6))
    return Stage("", "", "", pieces, float(draw.randint(1, 3)), alone, once, shared)


STAGES = [stage(seed) for seed in range(40)]


def twin(found: Stage, workers: int, link: Link) -> float:
    """Each piece by itself goes to the worker that is free first."""
    used = min(workers, found.count)
    free = [
        link.latency + found.once + (k + 1) * found.shared / link.bandwidth for k in range(used)
    ]
    durations = []
    for own in found.pieces:
        busy = own.seconds + own.moved / link.bandwidth
        durations += own.count * [max(busy, busy / 2 + link.latency)]
    for duration in sorted(durations, reverse=True):
        first = min(range(used), key=lambda k: free[k])
        free[first] += duration
    there = used * found.shared + sum(p.count * p.sent for p in found.pieces)
    back = sum(p.count * p.returned for p in found.pieces)
    caller = found.count * link.each + max(there, back) / link.bandwidth
    last = max(free) + link.each + link.latency
    return found.times * (found.alone + max(last, found.once + caller + 2 * link.latency))


@pytest.mark.parametrize("link", LINKS)
def test_it_is_as_if_each_piece_went_by_itself(link):
    for found in STAGES:
        for workers in COUNTS[1:]:
            expected = twin(found, workers, link)
            assert makespan(found, workers, link) == pytest.approx(expected, rel=1e-9)


def test_one_worker_takes_all_seconds_and_gets_nothing():
    for found in STAGES:
        seconds = found.times * (
            found.alone + found.once + sum(p.count * p.seconds for p in found.pieces)
        )
        assert makespan(found, 1, Link(1.0, 9.0)) == pytest.approx(seconds)
        assert sent(found, 1) == returned(found, 1) == 0


def test_more_workers_are_never_slower_and_never_better_than_their_number():
    for found in STAGES:
        longest = max(p.seconds for p in found.pieces)
        times = [makespan(found, workers) for workers in COUNTS]
        assert all(b <= a * (1 + 1e-12) for a, b in zip(times, times[1:], strict=False))
        for workers, time in zip(COUNTS, times, strict=True):
            assert time >= found.seconds / workers * (1 - 1e-12)
            common = found.alone + found.once + found.divided / workers
            assert time <= found.times * (common + longest) * (1 + 1e-12)


@pytest.mark.parametrize("link", LINKS[1:])
def test_what_is_on_its_way_takes_time(link):
    for found in STAGES:
        for workers in COUNTS[1:]:
            time = makespan(found, workers, link)
            assert time >= 2 * found.times * link.latency
            assert time * link.bandwidth >= (1 - 1e-9) * sent(found, workers)
            assert time * link.bandwidth >= (1 - 1e-9) * returned(found, workers)
            assert time >= (1 - 1e-9) * found.times * found.count * link.each
    few, many = (sum(sent(found, workers) for found in STAGES) for workers in (2, 64))
    assert few < many  # each worker gets what all of them share
    assert sum(returned(found, 2) for found in STAGES) == sum(
        returned(found, 64) for found in STAGES
    )


@pytest.mark.parametrize("link", LINKS)
def test_losses_and_an_equal_part_are_all_of_the_time(link):
    for found in STAGES:
        for workers in COUNTS:
            parts = vars(lost(found, workers, link)).values()
            time = found.seconds / workers + sum(parts)
            assert time == pytest.approx(makespan(found, workers, link))


def test_known_schedules():
    alike = Stage("", "", "", (Pieces(10, 1, 1.0, 0.0, 0.0),))
    assert [makespan(alike, workers) for workers in (1, 2, 4, 9, 10, 99)] == [10, 5, 3, 2, 1, 1]
    # Graham's worst case of the largest first: 11, where 9 were possible
    sizes = ((2, 5.0), (2, 4.0), (3, 3.0))
    pieces = tuple(Pieces(count, 1, seconds, 0.0, 0.0) for count, seconds in sizes)
    assert makespan(Stage("", "", "", pieces), 3) == 11
    twice = Stage("", "", "", (Pieces(4, 1, 1.0, 0.0, 0.0),), times=2.0, alone=0.5, once=0.25)
    assert makespan(twice, 4) == 2 * (0.5 + 0.25 + 1.0)


def test_threads_of_the_caller_get_nothing_sent():
    here = Stage("", "", "", (Pieces(2, 1, 3.0, 1e9, 1e9),), shared=1e9, here=True)
    assert makespan(here, 64, Link(1.0, 1.0)) == 3.0
    assert sent(here, 64) == returned(here, 64) == 0


def test_short_pieces_wait_for_the_next_and_long_ones_do_not():
    def time(seconds: float) -> float:
        own = Stage("", "", "", (Pieces(200, 1, seconds, 0.0, 0.0),))
        return makespan(own, 2, Link(inf, 1.0))

    assert time(10.0) == 100 * 10.0 + 2  # two are in flight: the second is there
    assert time(0.0) == pytest.approx(100 * 1.0 + 2)  # two in each round trip
