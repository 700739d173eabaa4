"""Saved models: `model.safetensors` holds the numbers, `model.json` says what they are. No pickle.

A sparse matrix is stored as CSR (`A.indptr`, `A.indices`, `A.values`, int32 indices), a denser one
as it is. The header carries a SHA-256 of the numbers, so two files that do not belong together are
noticed, and the non-zeros of each matrix, which are counted again after a load.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from simplicit.equations.phi import Phi, PhiName
from simplicit.errors import InputError
from simplicit.model.archive import equations_json as archive_layers
from simplicit.model.archive.packing import Storage, pack, unpack
from simplicit.model.implicit import Block, ImplicitModel, Structure
from simplicit.system.files import replace_with

NUMBERS, HEADER = "model.safetensors", "model.json"

Size = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Layer(_Strict):
    name: str
    size: Size
    phi: PhiName
    slope: float


class _Matrix(_Strict):
    shape: tuple[Size, Size]
    nonzeros: Size
    storage: Storage


class _Header(_Strict):
    format: Literal["simplicit"] = "simplicit"
    version: Literal[1] = 1
    structure: Structure
    input_shape: tuple[Size, ...]
    reference_nonzeros: Size
    blocks: tuple[_Layer, ...]
    matrices: dict[Literal["A", "B", "C", "D"], _Matrix]
    vectors: tuple[Literal["b", "d", "weights"], ...]
    sha256: str


def save(model: ImplicitModel, directory: str | Path) -> None:
    """Write a model; a model already there is replaced only once everything is on disk.

    A full disk or a folder that cannot be written is an `InputError`, and nothing is left behind.

    Args:
        model: What to write.
        directory: Where to; made if it does not exist.
    """
    if model.equations is not None:
        numbers, layers = archive_layers.write(model)
        payload = safetensors.torch.save(numbers)
        layers["sha256"] = hashlib.sha256(payload).hexdigest()
        text = archive_layers.text(layers)
        _write(Path(directory), {NUMBERS: payload, HEADER: text.encode()})
        return
    numbers = {}
    matrices = {}
    for name in ("A", "B", "C", "D"):
        W = model.get_parameter(name).detach().cpu()
        parts, storage = pack(W)
        numbers |= {f"{name}{suffix}": part for suffix, part in parts.items()}
        matrices[name] = _Matrix(
            shape=(W.shape[0], W.shape[1]), nonzeros=int(torch.count_nonzero(W)), storage=storage
        )
    vectors = {"b": model.b, "d": model.d, "weights": model.weights}
    vectors = {name: t.detach().cpu() for name, t in vectors.items() if t is not None}
    payload = safetensors.torch.save(numbers | vectors)
    layers = (
        _Layer(name=block.name, size=block.size, phi=block.phi.name, slope=block.phi.slope)
        for block in model.blocks
        if isinstance(block.phi, Phi)
    )
    header = _Header(
        structure=model.structure,
        input_shape=model.input_shape,
        reference_nonzeros=model.reference_nonzeros,
        blocks=tuple(layers),
        matrices=matrices,
        vectors=tuple(vectors),  # pyright: ignore[reportArgumentType]
        sha256=hashlib.sha256(payload).hexdigest(),
    )
    text = header.model_dump_json(indent=2) + "\n"
    _write(Path(directory), {NUMBERS: payload, HEADER: text.encode()})


def load(directory: str | Path) -> ImplicitModel:
    """Read a model that `save` wrote; every bit of every weight is the same (−0.0 becomes 0.0).

    Args:
        directory: Folder with `model.safetensors` and `model.json`.

    Returns:
        The model, on the CPU.

    Raises:
        InputError: If a file is missing, damaged, or of another model.
    """
    folder = Path(directory)
    try:
        text, payload = (folder / HEADER).read_bytes(), (folder / NUMBERS).read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder}: no readable {HEADER} and {NUMBERS} of a saved model ({error.strerror})"
        ) from None
    layers = _layers(text)
    if layers is not None:
        _check_sum(folder, payload, layers.get("sha256"))
        try:
            return archive_layers.read(layers, safetensors.torch.load(payload))
        except (SafetensorError, InputError) as error:
            raise InputError(f"{folder / HEADER}: {error}") from None
    try:
        header = _Header.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{folder / HEADER}: {where}: {first['msg']}; save the model again"
        ) from None
    _check_sum(folder, payload, header.sha256)
    try:
        numbers = safetensors.torch.load(payload)
        dense = {
            name: unpack(numbers, name, entry.shape, entry.storage)
            for name, entry in header.matrices.items()
        }
        vectors = {name: numbers[name] for name in header.vectors}
        A, B, C, D = (dense[name] for name in ("A", "B", "C", "D"))
    except (SafetensorError, KeyError, IndexError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder / HEADER}: does not fit {NUMBERS} ({reason})") from None
    for name, entry in header.matrices.items():
        if (found := int(torch.count_nonzero(dense[name]))) != entry.nonzeros:
            raise InputError(
                f"{folder}: {name} has {found} non-zeros, its header says {entry.nonzeros}"
            )
    return ImplicitModel(
        A,
        B,
        C,
        D,
        **vectors,
        blocks=[
            Block(layer.name, layer.size, Phi(layer.phi, layer.slope)) for layer in header.blocks
        ],
        structure=header.structure,
        input_shape=header.input_shape,
        reference_nonzeros=header.reference_nonzeros,
    )


def _layers(text: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(text)
    except ValueError:
        return None
    layered = isinstance(header, dict) and header.get("kind") == archive_layers.KIND
    return header if layered else None


def _check_sum(folder: Path, payload: bytes, expected: object) -> None:
    if hashlib.sha256(payload).hexdigest() != expected:
        raise InputError(
            f"{folder / NUMBERS}: damaged, or not of this {HEADER} (SHA-256 differs); copy both "
            "files again"
        )


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    try:
        with ExitStack() as stack:  # nothing is renamed before everything is written
            for name, content in contents.items():
                path = stack.enter_context(replace_with(folder / name))
                with path.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{folder}: cannot write the model ({error.strerror})") from None
