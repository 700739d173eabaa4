"""The files of a dataset on this machine, and whether they are what their publisher gave out.

Checksums of single files are those of the *uncompressed* contents: Debian packs the same data into
other gzip bytes than the publishers do, and an unpacked file is as good as a packed one.
"""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from simplicit.errors import InputError


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


def contents(source: Source, folder: Path, file: str) -> bytes:
    """The uncompressed contents of one file, checked against its SHA-256.

    Args:
        source: The dataset.
        folder: The folder of its files.
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


def check_archive(source: Archive, path: Path) -> None:
    """Compare an archive with its SHA-256.

    Args:
        source: The dataset.
        path: Its archive.

    Raises:
        InputError: If the archive cannot be read or is another.
    """
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


def missing(source: Source, folder: Path) -> list[str]:
    """List the files that a folder lacks.

    Args:
        source: The dataset.
        folder: Where to look; files may be packed or not.

    Returns:
        Names of `source.sha256`.
    """
    return [file for file in source.sha256 if _find(folder, file) is None]


def _find(folder: Path, file: str) -> Path | None:
    candidates = (folder / f"{file}.gz", folder / file)
    return next((path for path in candidates if path.is_file()), None)
