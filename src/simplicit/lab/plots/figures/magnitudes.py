"""Sizes of the weights that are left, layer by layer, against the explicit network's."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from simplicit.errors import InputError
from simplicit.lab.plots import style
from simplicit.lab.plots.save import Drawing
from simplicit.lab.results import read
from simplicit.lab.results.matrices import Matrices, matrices

TITLE = "How large the weights are"
CAPTION = (
    "Histograms of the non-zero |weights| on a logarithmic axis, one panel a layer (its rows of "
    "[A B] or [C D]). The area is the number of weights: filled is the implicit model, the "
    "outline the explicit network, where its weights are in the run folder. Look at where the "
    "weights have gone: small ones missing on the left mean that the model was thinned out, a "
    "shift to the right that those left carry more."
)

BINS = 40


@style.quiet
def draw(layers: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> Drawing:
    """Draw one histogram a layer.

    Args:
        layers: For each layer its label and, by model (`explicit`, `implicit`), its weights
            (any shape; zeros and what is not finite are passed over).

    Returns:
        The figure, and `layer`, `model`, `low`, `high` (edges of the bin), `weights` (how many).

    Raises:
        InputError: If there is no weight to show.
    """
    sizes = [
        (label, {model: _nonzero(weights) for model, weights in by_model.items()})
        for label, by_model in layers
    ]
    everything = np.concatenate([w for _, by_model in sizes for w in by_model.values()] or [[]])
    if not everything.size:
        raise InputError("the saved model has no non-zero weight")
    # the smallest 0.1 % would otherwise stretch the axis over decades of dust
    low = np.floor(np.log10(np.quantile(everything, 0.001)) * 2) / 2
    high = np.ceil(np.log10(everything.max()) * 2) / 2
    edges = np.logspace(low, max(high, low + 0.5), BINS + 1)

    across = min(len(sizes), 4)
    down = -(-len(sizes) // across)
    figure = style.new_figure(8.5, 0.5 + 2.1 * down)
    panels = figure.subplots(down, across, sharex=True, squeeze=False).ravel()
    data = []
    for axes, (label, by_model) in zip(panels, sizes, strict=False):
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_title(label)
        axes.grid(axis="x", visible=False)
        for model, weights in by_model.items():
            counts, _ = np.histogram(weights.clip(edges[0], edges[-1]), edges)
            implicit = model == "implicit"
            axes.stairs(
                counts, edges, fill=implicit, label=model, color=style.colours([])[model],
                alpha=0.55 if implicit else 1, linewidth=1.2,
            )  # fmt: skip
            data += [
                {"layer": label, "model": model, "low": a, "high": b, "weights": int(count)}
                for a, b, count in zip(edges, edges[1:], counts, strict=False)
            ]
    for axes in panels[len(sizes) :]:
        axes.remove()
    figure.supxlabel("|weight|", fontsize=9)
    panels[0].set_ylabel("weights")
    panels[0].legend(loc="upper left", handlelength=1.2)
    return Drawing(figure, data)


def _nonzero(weights: np.ndarray) -> np.ndarray:
    sizes = np.abs(weights[np.isfinite(weights) & (weights != 0)])
    return sizes.astype(np.float64)


def by_layer(
    model: Matrices, explicit: Mapping[str, np.ndarray]
) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Put the weights of both models side by side, first layer first.

    Args:
        model: The implicit model.
        explicit: The explicit network's weights by parameter name, or nothing.

    Returns:
        What `draw` takes.
    """
    names = [name for name, _ in model.blocks]
    kernels = {k.removesuffix(".weight"): w for k, w in explicit.items() if k.endswith(".weight")}
    output = [k for k in kernels if k not in names and len(kernels[k]) == len(model.D)]
    splits = np.cumsum([size for _, size in model.rows])[:-1]
    layers = []
    for (label, _), name, rows in zip(
        model.rows, [*names, *output[:1], ""], np.split(model.whole, splits), strict=False
    ):
        theirs = {"explicit": kernels[name]} if name in kernels else {}
        layers.append((label, theirs | {"implicit": rows}))
    return [*layers[-2::-1], layers[-1]]


def from_run(run_dir: Path) -> Drawing:
    """Draw the weights of a run folder's saved model.

    Args:
        run_dir: The run folder; the explicit network's weights are `explicit.safetensors`.

    Returns:
        As `draw`.
    """
    explicit = run_dir / "explicit.safetensors"
    return draw(by_layer(matrices(run_dir), read.arrays(explicit) if explicit.is_file() else {}))
