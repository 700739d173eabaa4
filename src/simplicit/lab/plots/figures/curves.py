"""Test accuracy and time of every method against sparsity."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from simplicit.errors import InputError
from simplicit.lab.methods import KINDS
from simplicit.lab.plots import style
from simplicit.lab.plots.save import Drawing
from simplicit.lab.results import read

TITLE = "Accuracy and time against sparsity"
CAPTION = (
    "Left: test accuracy of each method at the sparsity it has reached, mean over the seeds; bars "
    "reach from the worst seed to the best, the grey band is the explicit network's. Right: "
    "seconds to make one model, by training or solving. Solid lines use no labels and no training; "
    "dashed ones train. Look at where a curve leaves the band."
)

MARKERS = ("o", "s", "^")
"""Of the models that a colour is given to, one after another."""


@style.quiet
def draw(rows: Sequence[Mapping[str, Any]]) -> Drawing:
    """Draw both panels.

    Args:
        rows: Metrics rows with `model`, `seed`, `sparsity`, `test_accuracy`, `seconds` and, but
            for the explicit networks, `target`.

    Returns:
        The figure, and what it shows.

    Raises:
        InputError: If no row has a target.
    """
    points = [row for row in rows if np.isfinite(read.number(row.get("target")))]
    if not points:
        raise InputError("metrics.json holds no sparsity that was asked for")
    models = list(dict.fromkeys(str(row["model"]) for row in points))
    colour = style.colours(models)
    figure = style.new_figure(8.5, 3.6)
    left, right = figure.subplots(1, 2)
    explicit = [row for row in rows if row["model"] == "explicit"]
    for axes, column in ((left, "test_accuracy"), (right, "seconds")):
        if values := [v for v in read.numbers(explicit, column) if np.isfinite(v)]:
            axes.axhspan(min(values), max(values), color=style.FAINT, linewidth=1)
            axes.axhline(float(np.mean(values)), color=style.EXPLICIT, label="explicit")
        for place, model in enumerate(models):
            dashes = "--" if KINDS[model].trains else "-"
            apart = (place - (len(models) - 1) / 2) * 0.0012  # bars that would hide each other
            own = [row for row in points if str(row["model"]) == model]
            used = [colour[m] for m in models[:place]].count(colour[model])
            marker = MARKERS[used % len(MARKERS)]
            _curve(axes, own, column, apart, colour[model], dashes, marker, model)
        axes.set_xlabel("sparsity")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    left.set_ylabel("test accuracy")
    left.yaxis.set_major_formatter(PercentFormatter(1))
    right.set_ylabel("seconds")
    right.set_yscale("log")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    columns = ("model", "seed", "target", "sparsity", "test_accuracy", "seconds")
    return Drawing(figure, [{c: row.get(c, "") for c in columns} for row in [*explicit, *points]])


def _curve(
    axes: Axes, rows: Sequence[Mapping[str, Any]], column: str, apart: float,
    colour: str, dashes: str, marker: str, label: str,
) -> None:  # fmt: skip
    targets, sparsity, values = (read.numbers(rows, c) for c in ("target", "sparsity", column))
    groups = [values[targets == target] for target in np.unique(targets)]
    at = np.array([sparsity[targets == target].mean() for target in np.unique(targets)])
    mean, low, high = (np.array([f(g) for g in groups]) for f in (np.mean, np.min, np.max))
    bars = np.maximum([mean - low, high - mean], 0)  # a mean may be rounded past its extremes
    axes.errorbar(
        at + apart, mean, yerr=bars, color=colour, linestyle=dashes,
        marker=marker, markersize=3.5, elinewidth=1, label=label,
    )  # fmt: skip


def from_run(run_dir: Path) -> Drawing:
    """Draw the metrics of a comparison.

    Args:
        run_dir: Its folder.

    Returns:
        As `draw`.
    """
    return draw(read.metrics(run_dir))
