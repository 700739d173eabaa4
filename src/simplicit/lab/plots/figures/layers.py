"""How much of each layer is left, model by model."""

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
from simplicit.lab.results.matrices import layer_labels, output_label

TITLE = "Where the weights are"
CAPTION = (
    "One line a layer, the first on top, means over the seeds. Left: the share of the layer's "
    "non-zero weights that is left, the bar for the implicit model, a dot for every other one. "
    "Right: how many that is, the outline for the explicit network. Look at which layers a model "
    "spares and which it thins out most; a bar beyond 100 % has connections that skip layers."
)

HEIGHT = 0.24
"""Inches a layer."""

Counts = Mapping[tuple[str, str], float]
"""Non-zero weights by model and layer."""


@style.quiet
def draw(rows: Sequence[Mapping[str, Any]]) -> Drawing:
    """Draw both panels.

    Args:
        rows: `seed`, `model`, `layer` and `nonzeros`, layers in the order of the network; the
            explicit network's among them.

    Returns:
        The figure, and `model`, `layer`, `nonzeros`, `share` (of the explicit network's).

    Raises:
        InputError: If no layer is both in the explicit network and in another model.
    """
    counts = _means(rows)
    layers = [layer for model, layer in counts if model == "explicit"]
    models = [model for model in dict.fromkeys(m for m, _ in counts) if model != "explicit"]
    layers = [layer for layer in layers if any((model, layer) in counts for model in models)]
    if not layers:
        raise InputError("layers.csv holds no layer of the explicit network beside another model's")
    colour = style.colours(models)
    figure = style.new_figure(8.5, 1.1 + HEIGHT * len(layers))
    left, right = figure.subplots(1, 2, sharey=True)
    whole = _of("explicit", layers, counts)
    for model in models:
        own = _of(model, layers, counts)
        _show(left, own / whole, model, colour[model])
        _show(right, own, model, colour[model])
    places = np.arange(len(layers))
    right.barh(places, whole, height=0.7, fill=False, edgecolor=style.EXPLICIT, label="explicit")
    left.axvline(1, color=style.EXPLICIT, linewidth=0.8)
    left.set_xlabel("weights left")
    left.xaxis.set_major_formatter(PercentFormatter(1))
    right.set_xlabel("non-zero weights")
    names = layer_labels(layers[-2::-1]) | {layers[-1]: output_label(layers[-1])}
    left.set_yticks(places, [names[layer] for layer in layers])
    left.set_ylim(len(layers) - 0.4, -0.6)
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return Drawing(
        figure,
        [
            {
                "model": model,
                "layer": layer,
                "nonzeros": counts[model, layer],
                "share": counts[model, layer] / counts["explicit", layer],
            }
            for model in ("explicit", *models)
            for layer in layers
            if (model, layer) in counts
        ],
    )


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        value = read.number(row["nonzeros"])
        if np.isfinite(value):
            groups.setdefault((str(row["model"]), str(row["layer"])), []).append(value)
    found = {key: float(np.mean(values)) for key, values in groups.items()}
    # a layer of zeros has no share of itself
    empty = {layer for (model, layer), n in found.items() if model == "explicit" and not n}
    return {key: n for key, n in found.items() if key[1] not in empty}


def _of(model: str, layers: Sequence[str], counts: Counts) -> Float[np.ndarray, " layers"]:
    return np.array([counts.get((model, layer), np.nan) for layer in layers])


def _show(axes: Axes, values: Float[np.ndarray, " layers"], model: str, colour: str) -> None:
    places = np.arange(len(values))
    if model == "implicit":
        axes.barh(places, values, height=0.7, color=colour, alpha=0.55, label=model)
    else:
        axes.plot(values, places, "o", color=colour, markersize=3.5, label=model)


def from_run(run_dir: Path) -> Drawing:
    """Draw the layers a run folder has counted in `layers.csv`.

    Args:
        run_dir: The run folder.

    Returns:
        As `draw`.
    """
    return draw(read.table(run_dir / "layers.csv", ("seed", "model", "layer", "nonzeros")))
