"""Memory is asked for before it is taken: a refusal with the figure instead of a killed process."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from simplicit.errors import InputError

GB = 1e9

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows control groups, by which containers and batch systems limit memory."""

MEMBERSHIP = Path("/proc/self/cgroup")
"""The control groups that this process is in."""

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")
"""Files of the limit and of the use; the entry of `memory.stat` that the kernel can give back."""

NO_LIMIT = 2**62
"""From here on a limit is none: version 1 writes 2⁶³ rounded down to a page."""


def require(size: float, what: str, device: torch.device | str | None = None) -> None:
    """Check that something fits into the free memory of a device.

    Args:
        size: Bytes.
        what: Its name in the refusal.
        device: Where it is going to be; the CPU by default.

    Raises:
        InputError: If it does not fit.
    """
    place = torch.device(device or "cpu")
    if place.type == "cuda":
        free = torch.cuda.mem_get_info(place)[0]
    elif place.type == "cpu":
        free = available()
    else:
        return
    if size > free:
        raise InputError(
            f"{what}: {size / GB:.1f} GB needed, {free / GB:.1f} GB free on {place}; "
            "use fewer features, or a machine with more memory"
        )


def require_disk(size: float, what: str, folder: Path | None = None) -> None:
    """Check that something fits onto a disk.

    Args:
        size: Bytes.
        what: Its name in the refusal.
        folder: Where it is going to be; the system's folder of temporary files by default.

    Raises:
        InputError: If it does not fit.
    """
    place = folder if folder and folder.exists() else Path(tempfile.gettempdir())
    if size and size > (free := shutil.disk_usage(place).free):
        raise InputError(
            f"{what}: {size / GB:.1f} GB needed on disk, {free / GB:.1f} GB free in {place}; use "
            "fewer of them, or another folder (TMPDIR, or that of a checkpoint)"
        )


def available(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Bytes that this process can still take: of the machine, and within its control groups.

    Args:
        cgroups: The folder of the control groups.
        membership: The file that names those of this process.

    Returns:
        The least of the machine's free memory and of what each limit, of either version of control
        groups, leaves. Files that the kernel keeps in memory only to save reading count as free.
    """
    return min([psutil.virtual_memory().available, *_left(cgroups, membership)])


def _left(cgroups: Path, membership: Path) -> Iterator[int]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = cgroups, V2
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", V1
        else:
            continue
        # a limit holds for all groups inside; in a container the top folder is the container's own
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                limit = int((folder / names[0]).read_text())
                if limit >= NO_LIMIT:  # of most groups; the other files would take most of the time
                    continue
                used = int((folder / names[1]).read_text())
                entries = (folder / "memory.stat").read_text().splitlines()
            except (OSError, ValueError):  # no such group here, or its limit is `max`
                continue
            stat = dict(entry.split() for entry in entries)
            yield max(0, limit - used + int(stat.get(names[2], 0)))
