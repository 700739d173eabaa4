"""One process at a time in a folder; the system takes the lock from a process that has died."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from simplicit.errors import InputError
from simplicit.system.files import make_folder

NAME = ".lock"
"""The file that is locked; it says which process has it, and goes with the lock."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep others out of a folder while the block runs.

    A folder that is made for it goes again if nothing else has come into it.

    Args:
        folder: The folder; it is made if need be.

    Yields:
        Nothing.

    Raises:
        InputError: If another process, or another call of this one, is in it.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give another folder")
    file = folder / NAME
    made = make_folder(folder)
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"{folder} is in use by {_holder(file)}: wait for its end, or give another folder"
        ) from None
    try:
        file.write_text(f"{os.getpid()}\n")
        yield
    finally:
        # while the lock is held: one who opens the file now finds that it has no name any more
        file.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            for empty in made:
                empty.rmdir()


def _holder(file: Path) -> str:
    number = ""
    with suppress(OSError):
        number = file.read_text().strip()
    return f"process {number}" if number.isdigit() else "another process"
