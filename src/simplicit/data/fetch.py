"""Find the files of a dataset, or fetch them: from mirrors, or out of Debian's package.

Checksums are those of the *uncompressed* contents: Debian packs the same data into other gzip
bytes than the publishers do, and an already unpacked file is as good as a packed one.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pooch
import requests

from simplicit.errors import InputError
from simplicit.system.progress import LOG_EVERY

TIMEOUT = (5.0, 30.0)
"""Seconds a mirror may take to be reached, and to send its next bytes."""


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package that holds the files, gzipped, in `folder`."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Source:
    """Where the files of one dataset come from.

    Args:
        name: Its name, also the name of its folder.
        sha256: File name without `.gz` -> SHA-256 of the uncompressed contents.
        mirrors: Addresses to which `<file>.gz` is appended, best first.
        debian: The Debian package with the same files, where there is one.
    """

    name: str
    sha256: Mapping[str, str]
    mirrors: tuple[str, ...]
    debian: DebianPackage | None = None


@dataclass(frozen=True)
class Archive:
    """A dataset whose files its publisher has packed into one.

    Args:
        name: Its name, also the name of its folder.
        file: Name of the archive.
        sha256: SHA-256 of the archive as it is.
        mirrors: Addresses to which `file` is appended, best first.
    """

    name: str
    file: str
    sha256: str
    mirrors: tuple[str, ...]


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
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = _first_good(source.mirrors, source.file, path.parent, _check_archive(source))
        except OSError as error:
            raise InputError(f"cannot write to {path.parent}: {error.strerror or error}") from error
        if not found:
            raise InputError(
                f"{source.name} could not be fetched: put {source.file} into {path.parent}"
            )
        return path
    _check_archive(source)(path)
    return path


def _check_archive(source: Archive) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        if found != source.sha256:
            raise InputError(
                f"{path}: damaged or another version (its SHA-256 begins {found[:12]}, "
                f"{source.name} has {source.sha256[:12]}); delete it and run again"
            )

    return check


def locate(source: Source, data_dir: Path) -> Path:
    """The folder that holds every file of the dataset, fetched first where need be.

    Looked at in this order: `<data_dir>/<name>/raw` (the layout of torchvision, whose folders
    can be used as they are), Debian's folder, the mirrors, Debian's package without root.
    What is fetched goes to the first of these, each file whole and checked or not at all.

    Args:
        source: The dataset.
        data_dir: The configured data folder; made if it is missing and something is fetched.

    Returns:
        The folder. What lies in the data folder or in Debian's is not checked here: `contents`
        does that when it reads.

    Raises:
        InputError: When nothing works: one line that says what to put where.
    """
    folder = data_dir / source.name / "raw"
    if not _missing(source, folder):
        return folder
    if source.debian and not _missing(source, source.debian.folder):
        return source.debian.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _download(source, folder) or _unpack_debian(source, folder):
            return folder
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    files = ", ".join(f"{file}.gz" for file in _missing(source, folder))
    raise InputError(f"{source.name} could not be fetched: put {files} into {folder}")


def contents(source: Source, folder: Path, file: str) -> bytes:
    """The uncompressed contents of one file, checked against its SHA-256.

    Args:
        source: The dataset.
        folder: Where `locate` found it.
        file: One of the names in `source.sha256`.

    Returns:
        The bytes.

    Raises:
        InputError: If the file cannot be read or is damaged.
    """
    path = _find(folder, file)
    if path is None:
        raise InputError(f"{folder / file}.gz: no such file")
    try:
        raw = path.read_bytes()
        unpacked = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    found, expected = hashlib.sha256(unpacked).hexdigest(), source.sha256[file]
    if found != expected:
        raise InputError(
            f"{path}: damaged or of another dataset (SHA-256 of its contents begins {found[:12]}, "
            f"{source.name} has {expected[:12]}); delete it and run again"
        )
    return unpacked


def _find(folder: Path, file: str) -> Path | None:
    candidates = (folder / f"{file}.gz", folder / file)
    return next((path for path in candidates if path.is_file()), None)


def _missing(source: Source, folder: Path) -> list[str]:
    return [file for file in source.sha256 if _find(folder, file) is None]


def _download(source: Source, folder: Path) -> bool:
    return all(_download_one(source, file, folder) for file in _missing(source, folder))


def _download_one(source: Source, file: str, folder: Path) -> bool:
    def check(path: Path) -> None:
        contents(source, path.parent, file)

    return _first_good(source.mirrors, f"{file}.gz", folder, check)


def _first_good(
    mirrors: tuple[str, ...], file: str, folder: Path, check: Callable[[Path], None]
) -> bool:
    # the first mirror's file that passes the check goes into the folder
    with TemporaryDirectory(dir=folder) as scratch:
        packed = Path(scratch) / file
        for mirror in mirrors:
            _say(f"downloading {mirror}{file}")
            shown: Any = _Megabytes()
            get = pooch.HTTPDownloader(timeout=TIMEOUT, chunk_size=1 << 16, progressbar=shown)
            try:
                get(f"{mirror}{file}", str(packed), None)
                check(packed)
            except (requests.RequestException, InputError) as error:
                _say(f"could not download {file} from there ({type(error).__name__})")
                continue
            os.replace(packed, folder / file)
            return True
    return False


class _Megabytes:
    """What `pooch` tells of a download, as a line now and then."""

    def __init__(self) -> None:
        self.total, self._done, self._last = 0, 0, time.monotonic()

    def update(self, size: int) -> None:
        self._done += size
        if time.monotonic() - self._last >= LOG_EVERY and self._done < self.total:
            self._last = time.monotonic()
            _say(f"{self._done / 1e6:.0f} of {self.total / 1e6:.0f} MB")

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None:
        pass


def _unpack_debian(source: Source, folder: Path) -> bool:
    # the package is unpacked, not installed: the system is not touched, root is not needed
    package = source.debian
    if package is None or not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return False
    _say(f"trying Debian's package {package.name}")
    with TemporaryDirectory(dir=folder) as scratch:
        archive = _apt_download(package.name, Path(scratch))
        tree = Path(scratch) / "tree"
        if archive is None or subprocess.run(["dpkg-deb", "-x", archive, tree]).returncode:
            _say(f"could not get Debian's package {package.name}")
            return False
        unpacked = tree / package.folder.relative_to("/")
        for file in _missing(source, folder):
            try:
                contents(source, unpacked, file)
            except InputError as error:
                _say(f"Debian's package {package.name} is of no use: {error}")
                return False
            os.replace(unpacked / f"{file}.gz", folder / f"{file}.gz")
    return True


def _apt_download(package: str, scratch: Path) -> Path | None:
    # with the system's package lists first; if they are missing or old, with private ones
    state, cache = scratch / "state", scratch / "cache"
    private = [
        f"-oDir::State={state.resolve()}",
        "-oDir::State::status=/var/lib/dpkg/status",
        f"-oDir::Cache={cache.resolve()}",
    ]

    def apt(*arguments: str) -> bool:
        command = ["apt-get", "-qq", "-oAcquire::Retries=0", "-oAcquire::http::Timeout=10"]
        return (
            subprocess.run([*command, *arguments], cwd=scratch, capture_output=True).returncode == 0
        )

    if not apt("download", package):
        (state / "lists" / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        if not (apt(*private, "update") and apt(*private, "download", package)):
            return None
    return next(scratch.glob("*.deb"), None)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
