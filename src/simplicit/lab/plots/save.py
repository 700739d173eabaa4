"""A figure and the numbers behind it, written next to each other and never by halves."""

from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from simplicit.system.files import replace_with, write_csv


class Drawing(NamedTuple):
    """A figure with the numbers it shows, as rows of a table with the same keys."""

    figure: Figure
    data: list[dict[str, Any]]


def save(drawing: Drawing, path: Path) -> None:
    """Write the figure to `path` (PNG) and its numbers beside it (CSV).

    Args:
        drawing: What to write.
        path: The image's path; the table gets the same name with `.csv`.
    """
    write_csv(path.with_suffix(".csv"), drawing.data)
    with replace_with(path) as file:
        # without the software's version the same numbers give the same bytes
        drawing.figure.savefig(file, format="png", metadata={"Software": None})
