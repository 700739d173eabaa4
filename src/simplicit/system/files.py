"""Results on disk: written under a temporary name and renamed, so never half-written."""

import csv
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replace_with(path: Path) -> Iterator[Path]:
    """Write to a temporary name beside `path`, renamed to it once the block has succeeded.

    Args:
        path: The file to create or replace; its folder is made if need be.

    Yields:
        The temporary path to write to.

    Raises:
        NotADirectoryError: If the folder cannot be made where it is to be.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError) as error:
        # in a folder that only the system fills, or behind a link to nowhere
        raise NotADirectoryError(
            errno.ENOTDIR, "no folder can be made there", str(path.parent)
        ) from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
