"""Results on disk: written under a temporary name and renamed, so never half-written."""

import csv
import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY, DAMAGED = ".tmp", ".damaged"
"""How the names of files end that are being written, and that could not be read."""


@contextmanager
def replace_with(path: Path) -> Iterator[Path]:
    """Write to a temporary name beside `path`, renamed to it once the block has succeeded.

    Args:
        path: The file to create or replace; its folder is made if need be.

    Yields:
        The temporary path to write to.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    _unfinished.add(temporary)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file)  # else the name may outlive a power cut, and the content not
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


_unfinished: set[Path] = set()


def leave() -> None:
    """Remove what is half-written, for a process that is about to end without unwinding."""
    for temporary in list(_unfinished):
        temporary.unlink(missing_ok=True)


def clear(folder: Path, everywhere: bool = True) -> None:
    """Remove the half-written files of processes that were killed.

    Args:
        folder: A folder that nobody else writes to.
        everywhere: Whether the folders in it are looked through, too.
    """
    pattern = f".*.*{TEMPORARY}"
    for temporary in folder.rglob(pattern) if everywhere else folder.glob(pattern):
        temporary.unlink(missing_ok=True)


def set_aside(path: Path, reason: str, then: str) -> None:
    """Take a damaged file out of the way, and say so.

    Args:
        path: The file.
        reason: What is wrong with it.
        then: What becomes of it, e.g. `computed again`.
    """
    aside = path.with_name(path.name + DAMAGED)
    os.replace(path, aside)
    reason = " ".join(reason.split())
    said = f"{path} is damaged ({reason}): it is kept as {aside.name}, and {then}"
    print(said, file=sys.stderr)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder, and those it is in.

    Args:
        folder: The folder.

    Returns:
        Those that were not there, the innermost first.

    Raises:
        NotADirectoryError: If it cannot be made where it is to be.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError) as error:
        # in a folder that only the system fills, or behind a link to nowhere
        raise NotADirectoryError(
            errno.ENOTDIR, "no folder can be made there", str(folder)
        ) from error
    return missing


def write_bytes(path: Path, content: bytes) -> None:
    """Write a binary file.

    Args:
        path: The file.
        content: Its content.
    """
    with replace_with(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file.

    Args:
        path: The file.
        text: Its content.
    """
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people and machines.

    Args:
        path: The file.
        value: Anything JSON knows.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table; rows may lack columns that others have.

    Args:
        path: The file.
        rows: The rows; the columns are theirs in order of appearance.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with replace_with(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as text:
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(rows)
