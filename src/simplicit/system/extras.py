"""Packages that only a part of simplicit needs, imported when that part is used."""

import importlib
from importlib.util import find_spec
from types import ModuleType

from simplicit.errors import InputError

EXTRAS = {
    "attacks": ("pyautoattack", "foolbox"),
    "cluster": ("distributed",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "pruning": ("torch_pruning",),
}
"""Extra -> its packages."""


def installed(extra: str) -> bool:
    """Say whether all packages of an extra are there.

    Args:
        extra: One of `EXTRAS`.

    Returns:
        Whether they are; nothing is imported.
    """
    return all(find_spec(name) is not None for name in EXTRAS[extra])


def package(name: str) -> ModuleType:
    """Import a package that may be missing.

    Args:
        name: Of the module.

    Returns:
        The module.

    Raises:
        InputError: If it is not installed; it says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        extra = next((key for key, names in EXTRAS.items() if name in names), None)
        install = f"'simplicit[{extra}]'" if extra else name
        raise InputError(f"{name} is not installed: pip install {install}") from None
