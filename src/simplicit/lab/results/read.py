"""The files of a run folder, read without torch; one that is missing or damaged is one line."""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from jaxtyping import Float
from omegaconf import OmegaConf
from safetensors.numpy import load_file
from yaml import YAMLError

from simplicit.errors import InputError


def text(path: Path) -> str:
    """Read a text file of the run folder.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        InputError: If it is missing or not UTF-8 text.
    """
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path.name} is missing from the run folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} cannot be read: {error}") from None


def from_json(path: Path) -> Any:
    """Read a JSON file of the run folder.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        InputError: If it is missing or not JSON.
    """
    try:
        return json.loads(text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path.name} is not valid JSON: {error}") from None


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Read `metrics.json`.

    Args:
        run_dir: A run folder.

    Returns:
        Its rows, one per model and seed.

    Raises:
        InputError: If the file is missing, damaged or not a list of rows that name their model.
    """
    rows = from_json(run_dir / "metrics.json")
    if not isinstance(rows, list) or not all(isinstance(r, dict) and "model" in r for r in rows):
        raise InputError("metrics.json must be a list of rows, each with its model")
    return rows


def table(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Read a CSV table of the run folder.

    Args:
        path: The file.
        columns: The columns it must have.

    Returns:
        Its rows, every cell as text.

    Raises:
        InputError: If it is missing, has no rows or lacks a column.
    """
    rows = list(csv.DictReader(text(path).splitlines(), restval=""))
    if not rows:
        raise InputError(f"{path.name} has no rows")
    if missing := [column for column in columns if column not in rows[0]]:
        raise InputError(f"{path.name} lacks the column {', '.join(missing)}")
    return rows


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        Its arrays by name.

    Raises:
        InputError: If it is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path.name} is missing from the run folder")
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path.name} is damaged: {error}") from None


def number(cell: Any) -> float:
    """Read a number that may be absent.

    Args:
        cell: A number, its text, or anything else.

    Returns:
        The number, nan where there is none.
    """
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan


def numbers(rows: Iterable[Mapping[str, Any]], column: str) -> Float[np.ndarray, " rows"]:
    """Read one column as numbers.

    Args:
        rows: A table's rows.
        column: Its name.

    Returns:
        The numbers, nan where there is none.
    """
    return np.array([number(row.get(column)) for row in rows], dtype=np.float64)


def setting(run_dir: Path, key: str) -> float:
    """Read a number of the run's configuration.

    Args:
        run_dir: A run folder.
        key: Where it is, e.g. `implicit.tol`.

    Returns:
        The number, nan where the configuration is missing or does not say.
    """
    try:
        config = OmegaConf.create(text(run_dir / "config.yaml"))
        return number(OmegaConf.select(config, key))
    except (InputError, YAMLError):
        return math.nan
