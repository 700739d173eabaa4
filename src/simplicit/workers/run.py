"""Work in pieces, here or by any executor: the answers come in the order of the pieces.

A piece is data, and the function that takes it stands at the top of a module, so that threads,
other processes and the machines of a cluster can run it alike. What one answers depends on the
piece alone, so any worker may take any piece, again if need be: one whose worker is gone, or is
much slower than the others.
"""

import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    wait,
)
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, Generic, TypeVar

import torch

from simplicit.errors import WorkerError
from simplicit.system import threads
from simplicit.workers.executors import of
from simplicit.workers.journal import Journal
from simplicit.workers.packing import Pack, pack, unpack
from simplicit.workers.processes import WorkerGoneError
from simplicit.workers.workers import Workers, here_threads

IN_FLIGHT = 2
"""Pieces handed over for each worker: one is worked on, the next is there when it ends."""

AHEAD = 4
"""Answers for each worker, at most, that wait for an earlier one: they take memory."""

DEATHS = 2
"""Workers that may die of a piece before it is named."""

LOST = 10
"""Times that a piece may be lost with a worker that had not begun with it."""

LATE, SLOWER = 5.0, 5.0
"""A piece is handed out again after so many seconds, if the longest so far took so many times less:
at most one in so many is done twice where pieces are alike."""

LIGHT = 2e8
"""Multiply-adds, ten milliseconds, that go to another process and back in about that time."""

LOOK = 1.0
"""Seconds between two looks at what is late, and at whether there still is a scheduler."""

Piece = TypeVar("Piece")
Answer = TypeVar("Answer")


def run(
    function: Callable[[Piece], Answer],
    pieces: Iterable[Piece],
    executor: Executor | None = None,
    *,
    cost: Callable[[Piece], float] | None = None,
    work: float = inf,
) -> Generator[Answer, None, None]:
    """Apply a function to every piece.

    A piece is taken from `pieces` when a worker is about to need it, so a generator of large pieces
    does not fill the memory. Every worker uses as many torch threads as the caller, on which the
    last bits of matrix products may depend.

    Args:
        function: What is done with a piece. Processes and clusters find it by its name, so it
            stands at the top of a module; a `functools.partial` of such a function will do.
        pieces: One argument a call. Processes and clusters need to be able to pickle them.
        executor: Who does it; None does it here, one piece after the other, as they are asked for.
        cost: What a piece costs, in any unit: then all are there at once, and the largest go first.
        work: Multiply-adds of a piece, about: light ones stay in this process, where threads take
            them; of those without, nothing is kept in a journal.

    Yields:
        The answers, in the order of the pieces. The first piece in this order that fails raises its
        error here. On an error, on Ctrl-C and where the answers are no longer asked for, pieces
        that have not begun are cancelled.
    """
    workers = executor if isinstance(executor, Workers) else Workers(executor)
    journal = workers.journal if work else None
    if workers.inner is None:
        yield from _one_by_one(function, pieces, journal)
        return
    task = _Task(workers, function, work < LIGHT, journal)
    try:
        yield from task.answers(pieces, cost)
    finally:
        task.end()


def _one_by_one(
    function: Callable[[Piece], Answer], pieces: Iterable[Piece], journal: Journal | None
) -> Iterator[Answer]:
    call = journal and journal.call(function)
    for index, piece in enumerate(pieces):
        if call is None:
            yield function(piece)
            continue
        known = call.known(index, piece)
        if known is None:
            begin = time.monotonic()
            known = (function(piece),)
            call.keep(index, piece, known[0], time.monotonic() - begin)
        yield known[0]


@dataclass(frozen=True)
class _Outcome:
    """What comes of a piece: an answer, or the error of the function itself."""

    answer: Any
    error: Exception | None
    seconds: float

    def __call__(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.answer


@dataclass(eq=False)
class _Job(Generic[Piece]):
    """A piece, and who has it."""

    index: int
    piece: Piece
    cost: float
    futures: list[Future[Any]] = field(default_factory=list)
    since: float = 0.0
    deaths: int = 0
    lost: int = 0


class _Task(Generic[Piece, Answer]):
    """One call of `run`."""

    def __init__(
        self,
        workers: Workers,
        function: Callable[[Piece], Answer],
        here: bool,
        journal: Journal | None,
    ) -> None:
        self._workers, self._function, self._here = workers, function, here or workers.here
        self._executor = workers.inner if workers.here or not here else here_threads()
        self._threads = torch.get_num_threads()
        self._packed: Pack | None = None
        self._jobs: dict[Future[Any], _Job[Piece]] = {}
        self._done: dict[int, _Outcome] = {}
        self._longest = 0.0
        self._call = journal and journal.call(function)

    def answers(
        self, pieces: Iterable[Piece], cost: Callable[[Piece], float] | None
    ) -> Iterator[Answer]:
        """Hand out all pieces.

        Args:
            pieces: The pieces.
            cost: What each costs.

        Yields:
            The answers.
        """
        left, following = self._ordered(pieces, cost), 0
        many = of(self._executor)
        more = True
        while True:
            ahead = cost is not None  # these are all in memory anyway
            while more and len(self._jobs) < IN_FLIGHT * many:
                if not ahead and len(self._done) >= AHEAD * many:
                    break
                job = next(left, None)
                more = job is not None
                if job is not None:
                    self._begin(job)
            while following in self._done:
                outcome = self._done.pop(following)
                following += 1
                yield outcome()
                if more and len(self._jobs) < IN_FLIGHT * many:
                    break  # the answer was used: meanwhile a worker may have become free
            else:
                if not self._jobs:
                    if not more:
                        return
                    continue
                self._wait()

    def _ordered(
        self, pieces: Iterable[Piece], cost: Callable[[Piece], float] | None
    ) -> Iterator[_Job[Piece]]:
        if cost is None:
            return (_Job(i, piece, 1.0) for i, piece in enumerate(pieces))
        jobs = [_Job(i, piece, cost(piece)) for i, piece in enumerate(pieces)]
        return iter(sorted(jobs, key=lambda job: -job.cost))

    def _begin(self, job: _Job[Piece]) -> None:
        known = self._call and self._call.known(job.index, job.piece)
        if known is not None:
            self._done[job.index] = _Outcome(known[0], None, 0.0)
            return
        self._hand_out(job)

    def _hand_out(self, job: _Job[Piece]) -> None:
        job.since = time.monotonic()
        if not self._here:
            try:
                future = self._sent(job)
            except (RuntimeError, OSError) as error:  # shut down, broken, or not reachable
                self._leave(f"{_name(self._function)}: the executor takes no more pieces ({error})")
        if self._here:
            assert self._executor is not None
            future = self._executor.submit(_do, self._function, self._threads, job.piece)
        job.futures.append(future)
        self._jobs[future] = job

    def _sent(self, job: _Job[Piece]) -> Future[Any]:
        assert self._executor is not None
        lender = self._workers.lender
        if self._packed is None:
            self._packed = pack(self._function, lender)
        piece = pack(job.piece, lender)
        own = self._packed.pickled, self._packed.parts
        return self._executor.submit(_away, *own, piece.pickled, piece.parts, self._threads)

    def _wait(self) -> None:
        ready, _ = wait(self._jobs, None if self._here else LOOK, FIRST_COMPLETED)
        for future in ready:
            # another may have been done, or been handed out anew, since
            if (job := self._jobs.pop(future, None)) is not None:
                self._settle(job, future)
        if self._here:
            return
        if self._workers.gone:
            self._leave("the scheduler is gone")
            return
        now = time.monotonic()
        for job in {id(job): job for job in self._jobs.values()}.values():
            late = max(LATE, SLOWER * self._longest * job.cost)
            if self._longest and len(job.futures) == 1 and now - job.since > late:
                self._workers.again += 1
                self._hand_out(job)

    def _settle(self, job: _Job[Piece], future: Future[Any]) -> None:
        if job.index in self._done:
            return
        try:
            outcome = future.result()
            outcome = unpack(outcome) if isinstance(outcome, Pack) else outcome
        except (Exception, CancelledError) as error:
            self._failed(job, future, error)
            return
        if isinstance(outcome.error, MemoryError):  # there may be room when others have ended
            self._failed(job, future, outcome.error)
            return
        for other in job.futures:
            self._jobs.pop(other, None)
            other.cancel()
        self._longest = max(self._longest, outcome.seconds / max(job.cost, 1e-30))
        self._done[job.index] = outcome
        if self._call and outcome.error is None:
            self._call.keep(job.index, job.piece, outcome.answer, outcome.seconds)
        del job.piece

    # not the function's fault: the piece is handed out again
    def _failed(self, job: _Job[Piece], future: Future[Any], error: BaseException) -> None:
        job.futures.remove(future)
        if self._workers.gone:
            self._leave("the scheduler is gone")
        began = getattr(error, "began", not isinstance(error, CancelledError))
        job.deaths, job.lost = job.deaths + began, job.lost + (not began)
        if job.deaths >= DEATHS or job.lost >= LOST:
            raise WorkerError(
                f"piece {job.index} of {_name(self._function)} ended {job.deaths + job.lost} "
                f"workers ({str(error) or type(error).__name__}); what is finished is kept: fewer "
                "workers leave each more memory"
            ) from error
        if not job.futures:
            if not self._here:
                self._workers.lender.forget()
                self._packed = None
            self._workers.again += 1
            self._hand_out(job)

    # all that is under way is done here instead
    def _leave(self, why: str) -> None:
        if self._here:
            return
        if not self._workers.here:
            self._workers.go_on_here(why)
        self._here, self._executor = True, here_threads()
        under_way = {id(job): job for job in self._jobs.values()}
        self._jobs.clear()
        for job in under_way.values():
            job.futures.clear()
            self._hand_out(job)

    def end(self) -> None:
        """Cancel what has not begun."""
        for future in self._jobs:
            future.cancel()
        if not self._here:
            self._workers.lender.end()


def _name(function: Callable[..., Any]) -> str:
    plain = function.func if isinstance(function, partial) else function
    return f"{plain.__module__}.{plain.__qualname__}".removeprefix("simplicit.")


def _do(function: Callable[[Any], Any], torch_threads: int, piece: Any) -> _Outcome:
    if torch.get_num_threads() != torch_threads:
        torch.set_num_threads(torch_threads)
    begin = time.monotonic()
    try:
        answer = function(piece)
    except Exception as error:
        return _Outcome(None, error, time.monotonic() - begin)
    return _Outcome(answer, None, time.monotonic() - begin)


# in another process
def _away(
    function: bytes,
    lent: Sequence[Any],
    piece: bytes,
    own: Sequence[Any],
    torch_threads: int,
) -> Pack:
    threads.numpy_alone()
    try:
        one, given = unpack(Pack(function, list(lent))), unpack(Pack(piece, list(own)))
    except OSError:  # what was lent has been taken back
        raise WorkerGoneError(began=False) from None
    outcome = _do(one, torch_threads, given)
    if outcome.error is not None:
        text = "".join(traceback.format_exception(outcome.error))
        outcome.error.add_note(f"in a worker:\n{text}")
    try:
        return pack(outcome)
    except Exception:  # an error that cannot be sent
        with suppress(Exception):
            text = "".join(traceback.format_exception(outcome.error))
            return pack(_Outcome(None, RuntimeError(text), outcome.seconds))
        raise
