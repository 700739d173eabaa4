"""Tensors in a file with a checksum, and digests of what it belongs to: what a stopped run keeps.

The checksum is that of the tensors' bytes and of everything said about them, so that a file that
was cut short or altered is never taken for what was written.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from simplicit.system.files import replace_with

SUM = "sha256"
"""Name of the checksum among what a file says of its tensors."""

PACKAGE = Path(__file__).parents[2]


class Damaged(Exception):
    """A file that cannot be read, or not as it was written; says why."""


def write(path: Path, tensors: Mapping[str, Tensor], says: Mapping[str, str]) -> None:
    """Write tensors.

    Args:
        path: The file.
        tensors: By their names.
        says: What is said of them.

    Raises:
        OSError: If the disk is full, or the folder cannot be written.
        SafetensorError: If the tensors cannot be written at all.
    """
    held: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        # the format knows no memory that tensors share
        held[name] = own.clone() if place in seen else own
        seen.add(place)
    with replace_with(path) as temporary:
        try:
            save_file(held, temporary, {**says, SUM: _sum(held, says)})
        except SafetensorError as error:
            # a full disk, which the library says in words only
            if number := re.search(r"os error (\d+)", str(error)):
                code = int(number[1])
                raise OSError(code, os.strerror(code), str(path)) from None
            raise


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors.

    Args:
        path: The file.

    Returns:
        The tensors, and what is said of them.

    Raises:
        Damaged: If the file cannot be read, or the checksum differs or is not there.
    """
    tensors, says, summed = _read(path)
    if not summed:
        raise Damaged("it has no checksum")
    return tensors, says


def read_any(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors that somebody else may have written, without a checksum.

    Args:
        path: The file.

    Returns:
        The tensors, and what is said of them; see `read`.
    """
    tensors, says, _ = _read(path)
    return tensors, says


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str], bool]:
    try:
        with safe_open(path, "pt") as file:
            says = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise Damaged(str(error)) from None
    told = says.pop(SUM, None)
    if told is not None and told != _sum(tensors, says):
        raise Damaged("its checksum differs")
    return tensors, says, told is not None


def digest(*things: Any) -> str:
    """Tell things from others.

    Args:
        *things: Tensors, by their bits, and anything with a `repr` of its own.

    Returns:
        A SHA-256.
    """
    found = hashlib.sha256()
    for thing in things:
        if isinstance(thing, Tensor):
            found.update(repr((thing.dtype, tuple(thing.shape))).encode())
            found.update(_bytes(thing.detach().cpu()))
        else:
            found.update(repr(thing).encode())
    return found.hexdigest()


def digest_together(parts: Iterable[Tensor]) -> str:
    """Tell rows from others, however they are cut into parts.

    Args:
        parts: Tensors of rows.

    Returns:
        A SHA-256.
    """
    found, count = hashlib.sha256(), 0
    for part in parts:
        found.update(_bytes(part.cpu()))
        count += len(part)
    return f"{found.hexdigest()} of {count}"


@cache
def code() -> str:
    """Tell this version of the package from others, of which one may have the same number.

    Returns:
        A digest of its source files.
    """
    found = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(PACKAGE).as_posix()} {len(content)} ".encode())
        found.update(content)
    return found.hexdigest()


def _sum(tensors: Mapping[str, Tensor], says: Mapping[str, str]) -> str:
    named = [(name, tensors[name]) for name in sorted(tensors)]
    return digest(json.dumps(dict(says), sort_keys=True), *(part for one in named for part in one))


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().flatten().view(torch.uint8).numpy()
