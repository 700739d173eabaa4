"""How many weights each layer has after each stage of a matching."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from simplicit.errors import InputError
from simplicit.lab.plots import style
from simplicit.lab.plots.save import Drawing
from simplicit.lab.results import read
from simplicit.lab.results.matrices import layer_names

TITLE = "How the budget was spent"
CAPTION = (
    "The weights of each layer after each stage, from the network to the finished model, means "
    "over the seeds; the dashed line is all layers together. Look at whether a layer's line falls "
    "less steeply than the dashed one: its weights are worth more to the outputs than others."
)


@style.quiet
def draw(rows: Sequence[Mapping[str, Any]]) -> Drawing:
    """Draw a line a layer.

    Args:
        rows: `stage`, `layer` and `weights`, stages and layers in order; several seeds are
            averaged.

    Returns:
        The figure, and `stage`, `layer`, `weights`.

    Raises:
        InputError: If nothing is left of the network after the first stage.
    """
    stages = list(dict.fromkeys(str(row["stage"]) for row in rows))
    layers = list(dict.fromkeys(str(row["layer"]) for row in rows))
    if len(stages) < 2:
        raise InputError("budget.csv holds one stage: nothing was spent")
    sums: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        key = str(row["stage"]), str(row["layer"])
        sums.setdefault(key, []).append(read.number(row["weights"]))
    means = {key: float(np.mean(values)) for key, values in sums.items()}
    figure = style.new_figure(8.5, 3.4)
    axes = figure.subplots()
    places = np.arange(len(stages))
    shades = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, len(layers)))
    for layer, shade in zip(layers, shades, strict=True):
        weights = np.array([means.get((stage, layer), np.nan) for stage in stages])
        label = layer if len(layers) <= 12 else None
        axes.plot(places, np.where(weights > 0, weights, np.nan), "o-", color=shade, markersize=3,
                  linewidth=1.2, label=label)  # fmt: skip
    whole = [np.nansum([means.get((stage, layer), np.nan) for layer in layers]) for stage in stages]
    axes.plot(places, whole, color=style.EXPLICIT, linestyle=(0, (4, 3)), label="all layers")
    axes.set_yscale("log")
    axes.set_ylabel("non-zero weights")
    turned = {"rotation": 30, "ha": "right"} if len(stages) > 6 else {}
    axes.set_xticks(places, stages, **turned)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    return Drawing(
        figure,
        [
            {"stage": stage, "layer": layer, "weights": means[stage, layer]}
            for stage in stages
            for layer in layers
            if (stage, layer) in means
        ],
    )


def from_run(run_dir: Path) -> Drawing:
    """Draw what a run folder has recorded in `budget.csv`.

    Args:
        run_dir: The run folder.

    Returns:
        As `draw`.
    """
    rows = read.table(run_dir / "budget.csv", ("stage", "layer", "weights"))
    names = layer_names(run_dir)
    return draw([row | {"layer": names.get(row["layer"], row["layer"])} for row in rows])
