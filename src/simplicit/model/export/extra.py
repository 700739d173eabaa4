"""Packages that only an export needs."""

import importlib
from types import ModuleType

from simplicit.errors import InputError


def package(name: str, install: str) -> ModuleType:
    """Import a package that may be missing.

    Args:
        name: Of the module.
        install: What pip is to install.

    Returns:
        The module.

    Raises:
        InputError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{name} is not installed: pip install {install}") from None


def of_onnx(name: str) -> ModuleType:
    """Import a package of the extra `onnx`.

    Args:
        name: Of the module.

    Returns:
        The module. One that is not installed is an `InputError`.
    """
    return package(name, "'simplicit[onnx]'")
