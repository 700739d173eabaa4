"""A dataset's files out of Debian's package, which is unpacked and not installed.

The system is not touched, and no root is needed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from simplicit.data.checked import Source, contents, missing
from simplicit.errors import InputError


def unpack(source: Source, folder: Path) -> bool:
    """Put the files that are missing into a folder, each whole and checked.

    Args:
        source: The dataset.
        folder: Where to.

    Returns:
        Whether all files are there now; the reason why not goes to standard error.
    """
    package = source.debian
    if package is None or not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return False
    print(f"trying Debian's package {package.name}", file=sys.stderr)
    with TemporaryDirectory(dir=folder) as scratch:
        downloaded = _download(package.name, Path(scratch))
        tree = Path(scratch) / "tree"
        if downloaded is None or subprocess.run(["dpkg-deb", "-x", downloaded, tree]).returncode:
            print(f"could not get Debian's package {package.name}", file=sys.stderr)
            return False
        unpacked = tree / package.folder.relative_to("/")
        for file in missing(source, folder):
            try:
                contents(source, unpacked, file)
            except InputError as error:
                print(f"Debian's package {package.name} is of no use: {error}", file=sys.stderr)
                return False
            os.replace(unpacked / f"{file}.gz", folder / f"{file}.gz")
    return True


def _download(package: str, scratch: Path) -> Path | None:
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
