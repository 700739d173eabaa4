"""Relative duality gap of the rows against time, one panel a layer."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simplicit.errors import InputError
from simplicit.lab.plots import style
from simplicit.lab.plots.save import Drawing
from simplicit.lab.results import read
from simplicit.lab.results.matrices import layer_names

TITLE = "How the convex problems were solved"
CAPTION = (
    "The relative duality gap of a layer's rows while they were solved: a proof of how far each "
    "row can still be from its optimum. The line is the median row, the shade reaches up to the "
    "worst one, the dashed line is the tolerance. Look at whether the shade ends below it; jumps "
    "upwards are new levels of the path, started from the last solution."
)


@style.quiet
def draw(trace: Sequence[Mapping[str, Any]], tolerance: float) -> Drawing:
    """Draw the gaps.

    Args:
        trace: Rows with `layer`, `seconds`, `gap_median`, `gap_max`, in order of time; several
            seeds are told apart by `seed`.
        tolerance: Relative gap at which a row counts as solved; nan if unknown.

    Returns:
        The figure, and what it shows.

    Raises:
        InputError: If no gap is a finite number.
    """
    gaps = read.numbers(trace, "gap_median"), read.numbers(trace, "gap_max")
    if not np.isfinite(gaps).any():
        raise InputError("trace.csv holds no finite gap")
    layers = list(dict.fromkeys(str(row["layer"]) for row in trace))
    seeds = list(dict.fromkeys(row.get("seed") for row in trace))
    across = min(len(layers), 4)
    down = -(-len(layers) // across)
    figure = style.new_figure(8.5, 0.5 + 2.1 * down)
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes, layer in zip(panels, layers, strict=False):
        floor = style.log_scale(axes, np.append(gaps, tolerance))
        for i, seed in enumerate(seeds):
            rows = np.array([(str(r["layer"]), r.get("seed")) == (layer, seed) for r in trace])
            seconds = read.numbers(trace, "seconds")[rows]
            median, worst = (style.on_log(gap[rows], floor) for gap in gaps)
            label = ("worst row", "median row") if i == 0 else (None, None)
            axes.fill_between(seconds, median, worst, color=style.IMPLICIT, alpha=0.15, linewidth=0)
            axes.plot(seconds, worst, color=style.IMPLICIT, linewidth=0.6, label=label[0])
            axes.plot(seconds, median, color=style.IMPLICIT, label=label[1])
        if math.isfinite(tolerance):
            dashes = {"linestyle": (0, (4, 3)), "linewidth": 1, "label": "tolerance"}
            axes.axhline(tolerance, color=style.ACCENT, **dashes)
        axes.set_title(layer)
    for axes in panels[len(layers) :]:
        axes.remove()
    panels[0].set_ylabel("relative gap")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, handlelength=1.5)
    figure.supxlabel("seconds", fontsize=9)
    columns = ("layer", "seed", "seconds", "gap_median", "gap_max")
    return Drawing(figure, [{c: row.get(c, "") for c in columns} for row in trace])


def from_run(run_dir: Path) -> Drawing:
    """Draw the solve a run folder has recorded in `trace.csv`.

    Args:
        run_dir: The run folder.

    Returns:
        As `draw`.
    """
    trace = read.table(run_dir / "trace.csv", ("layer", "seconds", "gap_median", "gap_max"))
    names = layer_names(run_dir)
    trace = [row | {"layer": names.get(row["layer"], row["layer"])} for row in trace]
    return draw(trace, read.setting(run_dir, "implicit.tol"))
