"""Microseconds a sample, every way a network and its model can be run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from simplicit.errors import InputError
from simplicit.lab.plots import style
from simplicit.lab.plots.save import Drawing
from simplicit.lab.results import read

TITLE = "Time of a sample"
CAPTION = (
    "Microseconds a sample on one thread, in batches of 1, 8 and 64: grey the explicit network, "
    "blue the implicit model; bars are medians, whiskers quartiles. All ways took turns in one "
    "process. Look at the shortest bar of each colour."
)

COLUMNS = ("model", "way", "dense", "threads", "batch", "milliseconds", "low", "high")


@style.quiet
def draw(rows: Sequence[Mapping[str, str]]) -> Drawing:
    """Draw a panel a batch size.

    Args:
        rows: Of `speed.csv`.

    Returns:
        The figure, and what it shows.

    Raises:
        InputError: If nothing was measured of the implicit model on one thread.
    """
    own = [row for row in rows if row["model"] == "implicit" and row["threads"] == "1"]
    if not own:
        raise InputError("speed.csv holds no time of the implicit model on one thread")
    batches = list(dict.fromkeys(row["batch"] for row in own))
    ways = list(dict.fromkeys((row["way"], row["dense"]) for row in own))
    figure = style.new_figure(8.5, 0.9 + 0.3 * len(ways))
    panels = np.atleast_1d(figure.subplots(1, len(batches), sharey=True))
    for axes, batch in zip(panels, batches, strict=True):
        some = {(row["way"], row["dense"]): row for row in own if row["batch"] == batch}
        for height, way in enumerate(ways):
            if way not in some:
                continue
            times = (1e3 * float(some[way][c]) for c in ("milliseconds", "low", "high"))
            middle, low, high = times
            axes.barh(
                height, middle, height=0.6, xerr=[[middle - low], [high - middle]],
                color=style.EXPLICIT if way[1] == "True" else style.IMPLICIT,
                error_kw={"elinewidth": 0.8, "ecolor": style.INK},
            )  # fmt: skip
        axes.set_title(f"batch {batch}")
        axes.set_xlabel("microseconds a sample")
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(ways)), [way for way, _ in ways])
    panels[0].set_ylim(len(ways) - 0.4, -0.6)
    return Drawing(figure, [{c: row.get(c, "") for c in COLUMNS} for row in own])


def from_run(run_dir: Path) -> Drawing:
    """Draw what a run has measured.

    Args:
        run_dir: The run folder.

    Returns:
        As `draw`.
    """
    return draw(read.table(run_dir / "speed.csv", COLUMNS))
