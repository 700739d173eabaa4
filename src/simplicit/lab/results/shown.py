"""What a run keeps for the figures of its robustness."""

from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load_file

from simplicit.errors import InputError

FILE = "robustness.safetensors"
"""As `evaluate.robustness.SHOWN`."""


def shown(run_dir: Path) -> dict[str, dict[str, np.ndarray]]:
    """Read the arrays of every model.

    Args:
        run_dir: A run folder.

    Returns:
        For each model `sensitivity`, `inputs`, `labels`, `attacked`, `predicted`, `radii`.

    Raises:
        InputError: If the file is missing, damaged or empty.
    """
    path = run_dir / FILE
    if not path.exists():
        raise InputError(f"{FILE} is missing from the run folder")
    try:
        arrays = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{FILE} cannot be read: {error}") from None
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in sorted(arrays.items()):
        model, _, part = name.partition("/")
        found.setdefault(model, {})[part] = array
    if not found:
        raise InputError(f"{FILE} is empty")
    # the two networks first
    first = [model for model in ("explicit", "implicit") if model in found]
    return {model: found[model] for model in [*first, *(m for m in found if m not in first)]}
