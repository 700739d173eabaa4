"""How long stages of pieces take with so many workers, simulated: list scheduling, largest first.

A stage begins when the one before it has ended. Workers are alike; the caller sends and receives
over one link, which takes both directions side by side. (Graham, "Bounds on multiprocessing timing
anomalies", 1969: a list never ends later than the mean load and one piece.)
"""

from dataclasses import dataclass
from heapq import heapify, heapreplace
from math import ceil, inf

from simplicit.matching.expected.stage import Stage
from simplicit.workers.run import IN_FLIGHT


@dataclass(frozen=True)
class Link:
    """What is between the caller and its workers.

    Attributes:
        bandwidth: Bytes a second, in each direction, of all workers together.
        latency: Seconds from one side to the other.
        each: Seconds of the caller to hand a piece over and to take its answer, bytes apart.
    """

    bandwidth: float = inf
    latency: float = 0.0
    each: float = 0.0


FREE = Link()
"""Nothing takes time on the way."""


@dataclass(frozen=True)
class Lost:
    """Seconds of a stage beyond an equal part of its work for each worker.

    Attributes:
        alone: While the caller works alone.
        repeated: While each worker makes what all of them need.
        uneven: While some workers have no piece left.
        moved: While workers wait for what is on its way.
    """

    alone: float = 0.0
    repeated: float = 0.0
    uneven: float = 0.0
    moved: float = 0.0


def makespan(stage: Stage, workers: int, link: Link = FREE) -> float:
    """Simulate a stage.

    Args:
        stage: What there is to do.
        workers: Who does it; a single one is the caller, to whom nothing is sent.
        link: What is between the caller and them.

    Returns:
        Seconds, all times.
    """
    if workers == 1 or not stage.pieces:
        return stage.seconds
    return stage.times * (stage.alone + _divided(stage, workers, FREE if stage.here else link))


def sent(stage: Stage, workers: int) -> float:
    """Count what goes to the workers.

    Args:
        stage: What there is to do.
        workers: Who does it.

    Returns:
        Bytes to all of them, all times.
    """
    if workers == 1 or stage.here:
        return 0.0
    own = sum(piece.count * piece.sent for piece in stage.pieces)
    return stage.times * (min(workers, stage.count) * stage.shared + own)


def returned(stage: Stage, workers: int) -> float:
    """Count what comes back.

    Args:
        stage: What there is to do.
        workers: Who does it.

    Returns:
        Bytes from all of them, all times.
    """
    if workers == 1 or stage.here:
        return 0.0
    return stage.times * sum(piece.count * piece.returned for piece in stage.pieces)


def lost(stage: Stage, workers: int, link: Link = FREE) -> Lost:
    """Say why a stage takes longer than an equal part of its work.

    Args:
        stage: What there is to do.
        workers: Who does it.
        link: What is between the caller and them.

    Returns:
        Seconds, all times; with those of an equal part they are the makespan.
    """
    if workers == 1:
        return Lost()
    idle, whole = 1 - 1 / workers, makespan(stage, workers, link)
    free = makespan(stage, workers, FREE)
    alone, once = (stage.times * own for own in (stage.alone, stage.once if stage.pieces else 0.0))
    uneven = free - alone - once - stage.times * stage.divided / workers
    return Lost(idle * alone, idle * once, max(uneven, 0.0), whole - free)


# pieces of one time
def _divided(stage: Stage, workers: int, link: Link) -> float:
    used, way = min(workers, stage.count), 1 / link.bandwidth
    # what all of them share goes to one worker after the other
    free = [link.latency + stage.once + (k + 1) * stage.shared * way for k in range(used)]
    durations = sorted(
        ((_seen(own.seconds + own.moved * way, link.latency), own.count) for own in stage.pieces),
        reverse=True,
    )
    for duration, count in durations:
        if duration <= 0:
            continue
        # so many each has in any case: the others catch up, and from there they take turns
        each = count // used - ceil((max(free) - min(free)) / duration) - 1
        if each > 0:
            free, count = [begin + each * duration for begin in free], count - each * used
        heapify(free)
        for _ in range(count):
            heapreplace(free, free[0] + duration)
    there = used * stage.shared + sum(own.count * own.sent for own in stage.pieces)
    back = sum(own.count * own.returned for own in stage.pieces)
    busy = stage.count * link.each + max(there, back) * way
    return max(max(free) + link.each + link.latency, stage.once + busy + 2 * link.latency)


# the next piece is on its way while one is worked on, so a worker waits only where pieces are short
def _seen(busy: float, latency: float) -> float:
    return max(busy, (busy + 2 * latency) / IN_FLIGHT)
