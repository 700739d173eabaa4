"""Tensors on disk: what is not to be in memory all at once is written, and read back when asked."""

import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Found = TypeVar("Found")

_thread = ThreadPoolExecutor(1, "spool")


def beside(function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """Apply a function that waits for the disk, while the caller gets the next item ready.

    Args:
        function: Runs in the one thread that all calls share, so it must not call `beside`.
        items: Asked for one after another, and one ahead of the answers.

    Yields:
        The answers, in the order of the items.
    """
    before: Future[Found] | None = None
    for item in items:
        now = _thread.submit(function, item)
        if before is not None:
            yield before.result()
        before = now
    if before is not None:
        yield before.result()


class Spool:
    """An unnamed file of tensors. Its space is free again when none of them is held any more.

    Args:
        folder: Where it is; the system's folder of temporary files by default.

    Raises:
        OSError: If there can be no file, or the disk is full.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._file, self._lock = tempfile.TemporaryFile(dir=folder), Lock()
        weakref.finalize(self, self._file.close)

    def keep(self, x: Tensor) -> "Spooled":
        """Write a tensor.

        Args:
            x: The tensor.

        Returns:
            Its place.
        """
        with self._lock:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(_bytes(x.cpu().contiguous()))
            self._file.flush()  # a full disk is an error here
        return Spooled(self, place, x.shape, x.dtype, x.device)

    def read(self, kept: "Spooled") -> Tensor:
        """Read a tensor.

        Args:
            kept: Its place.

        Returns:
            A copy with the same bits.
        """
        x = torch.empty(kept.shape, dtype=kept.dtype)
        with self._lock:
            self._file.seek(kept.place)
            self._file.readinto(_bytes(x))
        return x.to(kept.device)


@dataclass(frozen=True, eq=False)
class Spooled:
    """A tensor on disk.

    Attributes:
        spool: Its file.
        place: Where it begins there.
        shape: Its shape.
        dtype: Its dtype.
        device: Where it is when it is read.
    """

    spool: Spool
    place: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return self.shape[0]


def read(x: Tensor | Spooled) -> Tensor:
    """Bring a tensor into memory.

    Args:
        x: The tensor, or its place.

    Returns:
        The tensor.
    """
    return x if isinstance(x, Tensor) else x.spool.read(x)


def _bytes(x: Tensor) -> memoryview:
    return x.view(-1).view(torch.uint8).numpy().data
