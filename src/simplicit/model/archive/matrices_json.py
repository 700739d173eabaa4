"""A, B, C, D as the first release saved them: a matrix by name, CSR or dense. Only read."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from simplicit.equations.phi import PhiName
from simplicit.errors import InputError
from simplicit.model.archive.packing import Storage, unpack

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


class Header(_Strict):
    """What `model.json` of the first release says of a model of matrices."""

    format: Literal["simplicit"]
    version: Literal[1]
    structure: Literal["full", "triangular", "layered"]
    input_shape: tuple[Size, ...]
    reference_nonzeros: Size
    blocks: tuple[_Layer, ...]
    matrices: dict[Literal["A", "B", "C", "D"], _Matrix]
    vectors: tuple[Literal["b", "d", "weights"], ...]
    sha256: str


def read(
    header: Mapping[str, Any], numbers: Mapping[str, Tensor]
) -> tuple[Header, dict[str, Tensor]]:
    """Read matrices and vectors.

    Args:
        header: Of `model.json`.
        numbers: Tensors by name.

    Returns:
        The checked header, and A, B, C, D and the vectors by name; `weights` is ω.

    Raises:
        InputError: If header and tensors are not those of a model.
    """
    try:
        checked = Header.model_validate_json(json.dumps(header))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{where}: {first['msg']}; save the model again") from None
    try:
        found = {
            name: unpack(numbers, name, entry.shape, entry.storage)
            for name, entry in checked.matrices.items()
        }
        vectors = {name: numbers[name] for name in checked.vectors}
        found = {name: found[name] for name in "ABCD"}
    except (KeyError, IndexError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"does not fit model.safetensors ({reason})") from None
    for name, entry in checked.matrices.items():
        if (count := int(torch.count_nonzero(found[name]))) != entry.nonzeros:
            raise InputError(f"{name} has {count} non-zeros, its header says {entry.nonzeros}")
    return checked, {**found, **vectors}
