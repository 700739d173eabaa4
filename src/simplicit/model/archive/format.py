"""Saved models: `model.safetensors` holds the numbers, `model.json` says what they are. No pickle.

The header carries a SHA-256 of the numbers, so two files that do not belong together are noticed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from simplicit.errors import InputError
from simplicit.system.files import replace_with

NUMBERS, HEADER = "model.safetensors", "model.json"


def write(folder: Path, header: Mapping[str, Any], numbers: dict[str, Tensor]) -> None:
    """Write both files; those already there are replaced only once everything is on disk.

    Args:
        folder: Where to; made if it does not exist.
        header: What the numbers are; the checksum is added.
        numbers: Tensors by name.

    Raises:
        InputError: If something cannot be written; then nothing is left behind.
    """
    payload = safetensors.torch.save(numbers)
    whole = {**header, "sha256": hashlib.sha256(payload).hexdigest()}
    # a line for each entry: indented, the equations of a small network are longer than its weights
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in whole.items())
    text = f"{{\n{lines}\n}}\n"
    try:
        with ExitStack() as stack:  # nothing is renamed before everything is written
            for name, content in {NUMBERS: payload, HEADER: text.encode()}.items():
                path = stack.enter_context(replace_with(folder / name))
                with path.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{folder}: cannot write the model ({error.strerror})") from None


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read both files.

    Args:
        folder: Where they are.

    Returns:
        The header and the tensors by name.

    Raises:
        InputError: If a file is missing, damaged, or does not belong to the other.
    """
    try:
        text, payload = (folder / HEADER).read_bytes(), (folder / NUMBERS).read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder}: no readable {HEADER} and {NUMBERS} of a saved model ({error.strerror})"
        ) from None
    try:
        header = json.loads(text)
    except ValueError as error:
        raise InputError(f"{folder / HEADER}: no JSON ({error}); save the model again") from None
    if not isinstance(header, dict):
        raise InputError(f"{folder / HEADER}: accepted is a JSON object; save the model again")
    if hashlib.sha256(payload).hexdigest() != header.get("sha256"):
        raise InputError(
            f"{folder / NUMBERS}: damaged, or not of this {HEADER} (SHA-256 differs); copy both "
            "files again"
        )
    try:
        return header, safetensors.torch.load(payload)
    except SafetensorError as error:
        raise InputError(f"{folder / NUMBERS}: {error}; save the model again") from None
