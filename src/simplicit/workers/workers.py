"""An executor and what is known of its pieces: what has been lent, and what is finished."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

from simplicit.system import progress, threads
from simplicit.workers.executors import of
from simplicit.workers.journal import Journal
from simplicit.workers.lender import Lender


@cache
def here_threads() -> ThreadPoolExecutor:
    """Make the threads of this process: for pieces that are cheaper than their way elsewhere.

    Returns:
        One a processor, the same in every call.
    """
    return ThreadPoolExecutor(threads.available())


class Workers(Executor):
    """An executor, what has been lent to it, and what is finished already.

    Args:
        inner: Who takes pieces; None for one after the other, here.

    Attributes:
        inner: Who takes pieces now.
        journal: Where finished pieces are kept, if they are.
        lender: Of what many pieces hold.
        here: Whether pieces stay in this process.
        again: How many pieces were handed out more than once.
    """

    def __init__(self, inner: Executor | None) -> None:
        self.inner: Executor | None = inner
        self.journal: Journal | None = None
        self.here = inner is None or isinstance(inner, ThreadPoolExecutor)
        self.lender = Lender(getattr(inner, "lend", None), getattr(inner, "take_back", None))
        self.again = 0

    @property
    def _max_workers(self) -> int:
        return of(self.inner)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand something to the executor.

        Args:
            fn: A function.
            args: Its arguments.
            kwargs: More of them.

        Returns:
            Its future.
        """
        return (self.inner or here_threads()).submit(fn, *args, **kwargs)

    @contextmanager
    def keeping(self, journal: Journal | None) -> Iterator[None]:
        """Keep finished pieces within the `with` block.

        Args:
            journal: Where; None to keep none.

        Yields:
            Nothing.
        """
        before, self.journal = self.journal, journal
        try:
            yield
        finally:
            if journal is not None:
                journal.close()
            self.journal = before

    @property
    def gone(self) -> bool:
        """Whether those who take pieces have said that they no longer do."""
        return bool(getattr(self.inner, "gone", False))

    def go_on_here(self, why: str) -> None:
        """Use threads of this process from now on.

        Args:
            why: A line for the user.
        """
        progress.say(f"{why}: the run goes on here, on {threads.available()} threads")
        self.inner, self.here = here_threads(), True
