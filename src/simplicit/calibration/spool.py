"""Tensors on disk: what is not to be in memory all at once is written, and read back when asked."""

import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


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
        self._file = tempfile.TemporaryFile(dir=folder)
        weakref.finalize(self, self._file.close)

    def keep(self, x: Tensor) -> "Spooled":
        """Write a tensor.

        Args:
            x: The tensor.

        Returns:
            Its place.
        """
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
