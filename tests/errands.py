"""What the workers of a cluster are sent: they import this module, so it imports little."""

import os
import signal
import time
from pathlib import Path

from torch import Tensor


def scaled(M: Tensor, factor: float) -> Tensor:
    return factor * M.sum(0)


def fails(piece: int) -> int:
    if piece == 2:
        raise ValueError("piece 2")
    return piece


def dies(folder: str, piece: int) -> int:
    marker = Path(folder) / "died"
    if piece == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return piece


def slow(piece: int) -> int:
    time.sleep(0.2)
    return piece


def kills(piece: int) -> int:
    if piece == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return piece
