"""Models from files: those of this release, and those of the first one in its two formats."""

from pathlib import Path
from typing import Any

from torch import Tensor

from simplicit.equations.phi import Phi
from simplicit.equations.stacked import Block
from simplicit.errors import InputError
from simplicit.model.archive import equations_json, matrices_json
from simplicit.model.archive.format import HEADER, read
from simplicit.model.implicit import ImplicitModel


def load(directory: str | Path) -> ImplicitModel:
    """Read a model that `ImplicitModel.save` wrote, of this release or an earlier one.

    Every bit of every weight is the same (−0.0 becomes 0.0).

    Args:
        directory: Folder with `model.safetensors` and `model.json`.

    Returns:
        The model, on the CPU.

    Raises:
        InputError: If a file is missing, damaged, or of another model.
    """
    header, numbers = read(Path(directory))
    made = _of_matrices if "matrices" in header else _of_equations
    try:
        return made(header, numbers)
    except InputError as error:
        raise InputError(f"{Path(directory) / HEADER}: {error}") from None


def _of_equations(header: dict[str, Any], numbers: dict[str, Tensor]) -> ImplicitModel:
    if header.get("version") not in (1, 2, 3):
        raise InputError(
            f"version {header.get('version')!r}: accepted are 1 to 3; a newer simplicit wrote it"
        )
    structure, N0 = header.get("structure"), header.get("reference_nonzeros")
    if structure not in ("full", "triangular", "layered") or not isinstance(N0, int) or N0 < 1:
        raise InputError(
            f"structure {structure!r} with reference_nonzeros {N0!r}: accepted are full, "
            "triangular, layered, and a number from 1 on; save the model again"
        )
    equations = equations_json.read(header, numbers)
    return ImplicitModel.from_equations(equations, N0, structure, numbers.get("omega"))


def _of_matrices(header: dict[str, Any], numbers: dict[str, Tensor]) -> ImplicitModel:
    first, tensors = matrices_json.read(header, numbers)
    omega = tensors.pop("weights", None)
    return ImplicitModel(
        **tensors,
        blocks=[Block(e.name, e.size, Phi(e.phi, e.slope)) for e in first.blocks],
        structure=first.structure,
        input_shape=first.input_shape,
        reference_nonzeros=first.reference_nonzeros,
        omega=omega,
    )
