"""A cluster by Dask (`distributed`): its scheduler places pieces, its workers hold what is lent."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from simplicit.errors import InputError
from simplicit.system.extras import package
from simplicit.workers.packing import Held

PATIENCE = 5.0
"""Seconds without a scheduler after which a run goes on here."""


def is_cluster(asked: Any) -> bool:
    """Say whether something is Dask's client, or its executor.

    Args:
        asked: What a user gives as an executor.

    Returns:
        Whether it is; Dask is not imported for that.
    """
    of_dask = type(asked).__module__.partition(".")[0] == "distributed"
    return of_dask and (hasattr(asked, "get_executor") or isinstance(asked, Executor))


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a scheduler.

    Args:
        address: Its address, e.g. `tcp://10.0.0.5:8786`.

    Yields:
        Dask's client.

    Raises:
        InputError: If there is none at the address, or Dask is not installed.
    """
    distributed = package("distributed")
    try:
        client = distributed.Client(address, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--scheduler {address}: no scheduler answers ({error}); accepted is the address of "
            "one that runs, as in tcp://10.0.0.5:8786"
        ) from None
    with client:
        yield client


class Cluster(Executor):
    """The workers of a Dask scheduler.

    Where this machine reaches all workers, data go to them and answers come from them directly, not
    by way of the scheduler, unless the client says otherwise. `close` leaves the client as it was.

    Args:
        client: Dask's client, or its executor.

    Raises:
        InputError: If workers have another version of simplicit, torch or Python, or there are
            none.
    """

    def __init__(self, client: Any) -> None:
        self._client = getattr(client, "_client", client)
        # a piece that is handed out again is worked on again
        self._executor = self._client.get_executor(pure=False)
        self._missed: float | None = None
        self._require_alike()
        self._asked = self._client.direct_to_workers
        if self._asked is None:
            self._client.direct_to_workers = _reachable(self._client)

    @property
    def _max_workers(self) -> int:
        return max(1, sum(self._client.nthreads().values())) if not self.gone else 1

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand something to the scheduler.

        Args:
            fn: A function.
            args: Its arguments; what `lend` gives goes to a worker once.
            kwargs: More of them.

        Returns:
            Its future.
        """
        return self._executor.submit(fn, *args, **kwargs)

    def lend(self, held: Held) -> Any:
        """Bring bytes to one worker, from which the others get them when they need them.

        Args:
            held: The bytes.

        Returns:
            Dask's future of them.
        """
        if self._client.direct_to_workers:
            try:
                return self._client.scatter(held, hash=False, direct=True)
            except (OSError, TimeoutError):  # that worker may be gone; others are not
                pass
        return self._client.scatter(held, hash=False, direct=False)

    def close(self) -> None:
        """Leave the client as it was given."""
        self._client.direct_to_workers = self._asked

    @property
    def gone(self) -> bool:
        """Whether the scheduler has not been there for some time."""
        if self._client.status == "running":
            self._missed = None
            return False
        if self._client.status in ("closed", "closing"):
            return True
        self._missed = self._missed or time.monotonic()
        return time.monotonic() - self._missed > PATIENCE

    # the same bits come from the same code only
    def _require_alike(self) -> None:
        here, there = _versions(), self._client.run(_versions)
        for address, found in there.items():
            differ = [f"{name} {found[name]} for {here[name]}" for name in here if
                      found[name] != here[name]]  # fmt: skip
            if differ:
                raise InputError(f"worker {address} has {', '.join(differ)}: install the same")
        if not there:
            raise InputError(
                f"the scheduler at {self._client.scheduler.address} has no workers: start some "
                "with `dask worker`"
            )


# Not where only the scheduler's address is open to this machine: then all goes through it, twice.
# One number goes to each worker in turn.
def _reachable(client: Any) -> bool:
    config = package("dask.config")
    numbers = [*range(max(len(client.nthreads()), 1))]
    try:
        with config.set({"distributed.comm.timeouts.connect": PATIENCE}):
            client.scatter(numbers, hash=False, direct=True, timeout=PATIENCE)
    except (OSError, TimeoutError):
        return False
    return True


def _versions() -> dict[str, str]:
    import platform

    import torch

    import simplicit
    from simplicit.model.archive.sealed import code

    # a changed copy may have the same number
    own = f"{simplicit.__version__} (code {code()[:16]})"
    versions = {"simplicit": own, "torch": torch.__version__}
    return {**versions, "Python": platform.python_version(), "machine": platform.machine()}
