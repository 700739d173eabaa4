"""The file that a run keeps for the figures of its robustness."""

from pathlib import Path

import numpy as np

from simplicit.errors import InputError
from simplicit.lab.results import read

FILE = "robustness.safetensors"
"""Its name."""


def shown(run_dir: Path) -> dict[str, dict[str, np.ndarray]]:
    """Read the arrays of every model.

    Args:
        run_dir: A run folder.

    Returns:
        For each model `sensitivity`, `inputs`, `labels`, `attacked`, `predicted`, `radii`.

    Raises:
        InputError: If the file is missing, damaged or empty.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in sorted(read.arrays(run_dir / FILE).items()):
        model, _, part = name.partition("/")
        found.setdefault(model, {})[part] = array
    if not found:
        raise InputError(f"{FILE} is empty")
    # the two networks first
    first = [model for model in ("explicit", "implicit") if model in found]
    return {model: found[model] for model in [*first, *(m for m in found if m not in first)]}
