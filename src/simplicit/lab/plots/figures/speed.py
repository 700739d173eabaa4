"""Test accuracy against the time of a sample, model by model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from simplicit.errors import InputError
from simplicit.lab.plots import style
from simplicit.lab.plots.save import Drawing
from simplicit.lab.results import read

TITLE = "Accuracy against time"
CAPTION = (
    "Test accuracy and microseconds a sample, each model by its fastest way, on one thread and in "
    "batches of 64; sparsities, beside the dots, are joined for each method. The grey line is the "
    "explicit network by its fastest way. Look at which dots are high and far to the left."
)

COLUMNS = ("model", "seed", "target", "sparsity", "test_accuracy", "milliseconds", "way")


@style.quiet
def draw(rows: Sequence[Mapping[str, Any]]) -> Drawing:
    """Draw a curve a model.

    Args:
        rows: Metrics rows with `model`, `seed`, `test_accuracy` and `milliseconds`.

    Returns:
        The figure, and what it shows.

    Raises:
        InputError: If no row has a time.
    """
    timed = [row for row in rows if np.isfinite(read.number(row.get("milliseconds")))]
    if not timed:
        raise InputError("metrics.json holds no time of a sample; evaluation.speed measures it")
    models = list(dict.fromkeys(str(row["model"]) for row in timed))
    colour = style.colours(models)
    figure = style.new_figure(6.4, 3.6)
    axes = figure.subplots()
    for model in models:
        own = [row for row in timed if str(row["model"]) == model]
        x, y = (read.numbers(own, column) for column in ("milliseconds", "test_accuracy"))
        x, order = 1e3 * x, np.argsort(x)
        if model == "explicit":
            axes.axvline(float(x.min()), color=colour[model], linewidth=1)
        axes.plot(x[order], y[order], marker="o", markersize=4, color=colour[model], label=model)
        for place in order if model != "explicit" else ():
            sparsity = f"{100 * read.number(own[place].get('sparsity')):.3g} %"
            axes.annotate(
                sparsity, (x[place], y[place]), (5, -9),
                textcoords="offset points", fontsize=7, color=colour[model],
            )  # fmt: skip
    axes.set_xlabel("microseconds a sample")
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(0.15)
    axes.set_xlim(left=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return Drawing(figure, [{c: row.get(c, "") for c in COLUMNS} for row in timed])


def from_run(run_dir: Path) -> Drawing:
    """Draw the metrics of a run or of a comparison.

    Args:
        run_dir: Its folder.

    Returns:
        As `draw`.
    """
    return draw(read.metrics(run_dir))
