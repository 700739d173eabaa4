"""Find the files of a dataset, or fetch them: from mirrors, or out of Debian's package."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import requests

from simplicit.data import debian
from simplicit.data.checked import Archive, Source, check_archive, contents, missing
from simplicit.errors import InputError
from simplicit.system import progress

TIMEOUT = (5.0, 30.0)
"""Seconds a mirror may take to be reached, and to send its next bytes."""

CHUNK = 1 << 16
"""Bytes that are written at a time."""


def archive(source: Archive, data_dir: Path) -> Path:
    """The archive `<data_dir>/<name>/<file>`, downloaded first where need be, and checked.

    Args:
        source: The dataset.
        data_dir: The configured data folder; made if it is missing and something is fetched.

    Returns:
        Its path.

    Raises:
        InputError: If it cannot be fetched, with what to put where, or is damaged.
    """
    path = data_dir / source.name / source.file
    if path.is_file():
        check_archive(source, path)
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _first_good(source.mirrors, path, lambda found: check_archive(source, found)):
            return path
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {error.strerror or error}") from error
    raise InputError(f"{source.name} could not be fetched: put {source.file} into {path.parent}")


def locate(source: Source, data_dir: Path) -> Path:
    """The folder that holds every file of the dataset, fetched first where need be.

    Looked at in this order: `<data_dir>/<name>/raw` (the layout of torchvision, whose folders
    can be used as they are), Debian's folder, the mirrors, Debian's package without root.
    What is fetched goes to the first of these, each file whole and checked or not at all.

    Args:
        source: The dataset.
        data_dir: The configured data folder; made if it is missing and something is fetched.

    Returns:
        The folder. What lies in the data folder or in Debian's is not checked here:
        `checked.contents` does that when it reads.

    Raises:
        InputError: When nothing works: one line that says what to put where.
    """
    folder = data_dir / source.name / "raw"
    if not missing(source, folder):
        return folder
    if source.debian and not missing(source, source.debian.folder):
        return source.debian.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _download(source, folder) or debian.unpack(source, folder):
            return folder
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    files = ", ".join(f"{file}.gz" for file in missing(source, folder))
    raise InputError(f"{source.name} could not be fetched: put {files} into {folder}")


def _download(source: Source, folder: Path) -> bool:
    def one(file: str) -> bool:
        return _first_good(
            source.mirrors, folder / f"{file}.gz", lambda path: contents(source, path.parent, file)
        )

    return all(one(file) for file in missing(source, folder))


def _first_good(mirrors: Sequence[str], path: Path, check: Callable[[Path], object]) -> bool:
    # the first mirror's file that passes the check goes into the folder
    with TemporaryDirectory(dir=path.parent) as scratch:
        packed = Path(scratch) / path.name
        for mirror in mirrors:
            print(f"downloading {mirror}{path.name}", file=sys.stderr)
            try:
                _get(f"{mirror}{path.name}", packed)
                check(packed)
            except (requests.RequestException, InputError) as error:
                reason = type(error).__name__
                print(f"could not download {path.name} from there ({reason})", file=sys.stderr)
                continue
            os.replace(packed, path)
            return True
    return False


def _get(address: str, path: Path) -> None:
    with requests.get(address, stream=True, timeout=TIMEOUT) as answer, path.open("wb") as file:
        answer.raise_for_status()
        size = int(answer.headers.get("content-length", 0))
        with progress.task(f"{path.name} (bytes)", size) as advance:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                advance(len(chunk))
