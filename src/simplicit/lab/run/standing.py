"""What of a run's results stands: whatever is damaged is set aside, said, and made again.

`config.yaml` alone is refused, by its name: what the folder holds is said nowhere else.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simplicit.errors import InputError
from simplicit.lab.results import read
from simplicit.lab.results.shown import FILE
from simplicit.lab.run import origin
from simplicit.model.archive import format as saved
from simplicit.model.archive import sealed
from simplicit.system import files

Row = dict[str, Any]

WEIGHTS = "explicit.safetensors"
"""The explicit network's weights, in the folder of its seed."""

EVERY_MODEL = ("layers", "speed", "robustness")
"""Tables with records of all models."""

TABLES = (*EVERY_MODEL, "rows", "trace", "budget", "units", "levels", "convergence")
"""Tables whose records are made with a row of the metrics; the others are of the implicit model."""

NUMBERS = ("seed", "test_accuracy", "sparsity", "nonzeros", "seconds")
"""What every row of the metrics must have."""


@dataclass
class Standing:
    """What of a folder stands.

    Attributes:
        rows: The rows of the metrics whose files are whole.
        damaged: Files that are to be set aside, each with the reason and what becomes of it.
        networks: Seeds whose explicit network is damaged, with their rows.
    """

    rows: list[Row] = field(default_factory=list)
    damaged: list[tuple[Path, str, str]] = field(default_factory=list)
    networks: set[int] = field(default_factory=set)

    def mend(self) -> None:
        """Set aside what is damaged."""
        for path, reason, then in self.damaged:
            files.set_aside(path, reason, then)


def standing(folder: Path, seeds: Sequence[tuple[int, Path]]) -> Standing:
    """Look through a run folder; nothing is changed yet.

    Args:
        folder: The run folder.
        seeds: Each seed and where its models are.

    Returns:
        What stands.
    """
    found = Standing()

    def whole(path: Path, then: str, look: Callable[[Path], Any]) -> bool:
        if not path.exists():
            return True
        try:
            look(path)
        except (InputError, sealed.Damaged) as error:
            found.damaged.append((path, str(error), then))
            return False
        return True

    if origin.known(folder) is None:
        found.damaged.append((folder / "environment.json", "not readable", "written again"))
    if whole(folder / "metrics.json", "its results are made again", lambda _: rows_of(folder)):
        found.rows = rows_of(folder) if (folder / "metrics.json").exists() else []

    def drop(model: str | None = None, seed: int | None = None) -> None:
        found.rows = [
            row
            for row in found.rows
            if (model or row["model"]) != row["model"]
            or (row["seed"] if seed is None else seed) != row["seed"]
        ]

    again = "what stands in it is made again"
    for name in TABLES:
        if not whole(folder / f"{name}.csv", again, table):
            drop(None if name in EVERY_MODEL else "implicit")
    for seed, own in seeds:
        if not whole(own / WEIGHTS, "made again", sealed.read_any):
            found.networks.add(seed)
        if not whole(own / FILE, again, read.arrays):
            drop(seed=seed)
        for model, place in {"implicit": own, "finetuned": own / "finetuned"}.items():
            made = any((row["model"], row["seed"]) == (model, seed) for row in found.rows)
            if made and not whole(place / saved.NUMBERS, "made again", _model):
                drop(model, seed)
    return found


def _model(numbers: Path) -> None:
    saved.read(numbers.parent)


def rows_of(folder: Path) -> list[Row]:
    """Read the metrics.

    Args:
        folder: A run folder.

    Returns:
        The rows.

    Raises:
        InputError: If one lacks a number that every row has.
    """
    rows = read.metrics(folder)
    for row in rows:
        if missing := [name for name in NUMBERS if not isinstance(row.get(name), int | float)]:
            raise InputError(f"a row lacks {', '.join(missing)}")
    return rows


def table(path: Path) -> list[Row]:
    """Read a table that goes on growing.

    Args:
        path: The file.

    Returns:
        Its rows; none if it has only a head.

    Raises:
        InputError: If it is cut short, or no such table.
    """
    text = read.text(path)
    if not text.endswith("\n"):
        raise InputError("it is cut short")
    rows = list(csv.DictReader(text.splitlines(), restkey="", restval=None))
    if any(None in row.values() or "" in row or "seed" not in row for row in rows):
        raise InputError("a line has other columns than the head")
    return rows
