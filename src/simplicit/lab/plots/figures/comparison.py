"""Test accuracy and sparsity of every model, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from simplicit.errors import InputError
from simplicit.lab.plots import style
from simplicit.lab.plots.save import Drawing
from simplicit.lab.results import read

TITLE = "Accuracy and sparsity"
CAPTION = (
    "Left: test accuracy, one dot a seed, the bar their mean; the axis does not begin at zero. "
    "Right: sparsity, the fraction of the explicit network's non-zero weights that is saved; "
    "left of zero a model has more weights than the network it came from. Look at how far the "
    "dots of the implicit model lie to the left of the explicit network's, and how far they "
    "scatter from seed to seed."
)


@style.quiet
def draw(rows: Sequence[Mapping[str, Any]]) -> Drawing:
    """Draw both panels.

    Args:
        rows: Metrics rows with `model`, `seed`, `test_accuracy` and `sparsity`, fractions.

    Returns:
        The figure, and what it shows.

    Raises:
        InputError: If no row has an accuracy or a sparsity.
    """
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    accuracy, sparsity = (
        {m: _finite([r for r in rows if str(r["model"]) == m], column) for m in models}
        for column in ("test_accuracy", "sparsity")
    )
    if not any(v.size for v in (*accuracy.values(), *sparsity.values())):
        raise InputError("metrics.json holds neither an accuracy nor a sparsity")
    colour = style.colours(models)
    figure = style.new_figure(8.5, 1.1 + 0.5 * len(models))
    left, right = figure.subplots(1, 2, sharey=True)
    for height, model in enumerate(models):
        _show(left, accuracy[model], height, colour[model], bar=False)
        _show(right, sparsity[model], height, colour[model], bar=True)
    left.margins(x=0.3)
    right.margins(x=0.45 if right.dataLim.xmin < 0 else 0.2)  # room for the values
    right.axvline(0, color="#999999", linewidth=0.8)
    right.use_sticky_edges = False
    for axes, label in ((left, "test accuracy"), (right, "sparsity")):
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.locator_params(axis="x", nbins=6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    left.set_yticks(range(len(models)), models)
    left.set_ylim(len(models) - 0.4, -0.6)
    columns = ("model", "seed", "test_accuracy", "sparsity")
    return Drawing(figure, [{c: row.get(c, "") for c in columns} for row in rows])


def _finite(rows: Sequence[Mapping[str, Any]], column: str) -> Float[np.ndarray, " seeds"]:
    values = read.numbers(rows, column)
    return values[np.isfinite(values)]


def _show(
    axes: Axes, values: Float[np.ndarray, " seeds"], height: int, colour: str, bar: bool
) -> None:
    """Mean of the seeds with its value in figures, and a dot for each seed if there are more."""
    if not values.size:
        axes.annotate("no value", (0.02, height), xycoords=axes.get_yaxis_transform(), va="center")
        return
    mean, alone = float(values.mean()), values.size == 1
    if bar:
        axes.barh(height, mean, height=0.5, color=colour)
    elif not alone:
        axes.plot([mean, mean], [height - 0.25, height + 0.25], color=colour, linewidth=2)
    if not (bar and alone):
        apart = np.linspace(-0.15, 0.15, values.size) if not alone else 0
        axes.scatter(values, height + apart, s=18, color=colour, edgecolor="white", zorder=3)
    beside, side = (values.min(), -1) if bar and mean < 0 else (values.max(), 1)
    value = f"{100 * mean:.4g} %".replace("-", "\N{MINUS SIGN}")
    axes.annotate(
        value, (float(beside), height), (7 * side, 0),
        textcoords="offset points", va="center", ha="left" if side > 0 else "right",
    )  # fmt: skip


def from_run(run_dir: Path) -> Drawing:
    """Draw a run folder's metrics.

    Args:
        run_dir: The run folder.

    Returns:
        As `draw`.
    """
    return draw(read.metrics(run_dir))
