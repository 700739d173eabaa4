"""Processes of this machine: one that dies costs the piece that it had, and another takes over."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, InvalidStateError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from simplicit.workers.packing import Held, Mapped

PREFIX = "simplicit-lent-"
"""How folders of lent arrays begin."""


class WorkerGoneError(RuntimeError):
    """A piece was lost on its way, or with its worker.

    Attributes:
        began: Whether the worker had begun with the piece.
    """

    def __init__(self, began: bool) -> None:
        super().__init__(began)
        self.began = began

    def __str__(self) -> str:
        return "its worker has died" if self.began else "lost on its way"


class _Worker:
    """One process, and what it was given, in order."""

    def __init__(self, context: Any) -> None:
        self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
        self.pid = self.pool.submit(os.getpid)
        self.given: deque[Future[Any]] = deque()
        self.dead = False


class Processes(Executor):
    """As many processes as are asked for, each with a queue of its own.

    Arrays that pieces share are written to files once, and mapped: they are in memory once,
    whatever the number of processes.

    Args:
        workers: How many processes.
        folder: Where these files are; a folder of the system's temporary files by default.
    """

    def __init__(self, workers: int, folder: Path | None = None) -> None:
        # A server that has torch imported forks a process in no time, and has no threads yet.
        methods = multiprocessing.get_all_start_methods()
        method = "forkserver" if "forkserver" in methods else "spawn"
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(["simplicit.fit"])
        self._max_workers, self._lock, self._lent = workers, threading.Lock(), 0
        self._folder, self._alive = _fresh(folder or Path(tempfile.gettempdir()))
        self._workers: list[_Worker | None] = [None] * workers  # begun when there is work

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Give something to the process that has least to do.

        Args:
            fn: A function that stands at the top of a module.
            args: Its arguments.
            kwargs: More of them.

        Returns:
            Its future, which fails with `WorkerGoneError` if the process dies.
        """
        outer: Future[Any] = Future()
        with self._lock:
            waiting = [0 if w is None else len(w.given) for w in self._workers]
            k = waiting.index(min(waiting))
            worker = self._workers[k] = self._workers[k] or _Worker(self._context)
            try:
                inner = worker.pool.submit(fn, *args, **kwargs)
            except BrokenProcessPool:  # it has died while it had nothing to do
                self._workers[k] = worker = _Worker(self._context)
                inner = worker.pool.submit(fn, *args, **kwargs)
            worker.given.append(outer)
        inner.add_done_callback(partial(self._done, worker, outer))
        outer.add_done_callback(lambda own: inner.cancel() if own.cancelled() else None)
        return outer

    def _done(self, worker: _Worker, outer: Future[Any], inner: Future[Any]) -> None:
        error = None if inner.cancelled() else inner.exception()
        with self._lock:
            began = not worker.dead and worker.given[0] is outer
            worker.given.remove(outer)
            if isinstance(error, BrokenProcessPool):
                worker.dead = True
                if worker in self._workers:
                    self._workers[self._workers.index(worker)] = None
                error = WorkerGoneError(began)
        # one that was cancelled meanwhile is not waited for any more
        with contextlib.suppress(InvalidStateError):
            if inner.cancelled():
                outer.cancel()
            elif error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(inner.result())

    def lend(self, held: Held) -> Mapped:
        """Write bytes to a file.

        Args:
            held: The bytes.

        Returns:
            Their place.
        """
        self._lent += 1
        path = self._folder / str(self._lent)
        held.bytes.numpy().tofile(path)
        return Mapped(str(path))

    def take_back(self, lent: Mapped) -> None:
        """Remove a file. Processes that have it mapped keep it as long as they need it.

        Args:
            lent: Its place.
        """
        Path(lent.path).unlink(missing_ok=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, those that have not ended their piece, too.

        Args:
            wait: Whether to wait until they have ended.
            cancel_futures: Pieces that have not ended are cancelled in any case.
        """
        with self._lock:
            workers, self._workers = self._workers, []
        for worker in filter(None, workers):
            if worker.given and worker.pid.done() and not worker.dead:
                with contextlib.suppress(ProcessLookupError, BrokenProcessPool):
                    os.kill(worker.pid.result(), signal.SIGKILL)
            worker.pool.shutdown(wait, cancel_futures=True)
        _remove(self._folder, self._alive)


# A folder whose lock is free is of a process that was killed.
def _fresh(place: Path) -> tuple[Path, FileLock]:
    for path in place.glob(f"{PREFIX}*.lock"):
        with contextlib.suppress(OSError, Timeout):
            lock = FileLock(path, timeout=0)
            lock.acquire()
            _remove(path.with_suffix(""), lock)
    folder = place / f"{PREFIX}{uuid.uuid4().hex}"
    alive = FileLock(folder.with_suffix(".lock"))
    alive.acquire()
    folder.mkdir()
    return folder, alive


def _remove(folder: Path, alive: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(alive.lock_file).unlink(missing_ok=True)
    alive.release()


# Ctrl-C is the caller's, who ends the others; a caller that was killed leaves none behind
def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_caller, daemon=True).start()


def _end_with_caller() -> None:
    caller = multiprocessing.parent_process()
    if caller is not None:
        caller.join()
        os._exit(1)
