"""Draws the README's picture from the comparison that the gallery runs.

By hand: `python docs/picture.py`.
"""

import json
from pathlib import Path

import gallery
import matplotlib
import numpy as np
from jaxtyping import Bool
from matplotlib.axes import Axes
from safetensors.numpy import load_file

from simplicit.lab.plots import style
from simplicit.lab.plots.figures.pattern import Ruler
from simplicit.lab.results.matrices import matrices

PATH = Path(__file__).parent / "_static" / "overview.svg"
COMPARISON = gallery.FOLDER / "compare"
SPARSITY = 0.9
NAMES = {
    "implicit": "simplicit",
    "gmp": "gradual magnitude pruning",
    "obs": "OBS, layer by layer",
    "magnitude": "magnitude",
}


def network(folder: Path) -> tuple[Bool[np.ndarray, "r c"], list[int], list[int]]:
    """Read where the explicit network has weights: a row per unit, a column per input or state.

    Returns:
        The mask, and the sizes of its blocks of rows and of columns, first layer first.
    """
    weights = [W for name, W in load_file(folder / "explicit.safetensors").items() if W.ndim == 2]
    weights.sort(key=lambda W: -W.shape[1])
    rows, columns = [len(W) for W in weights], [W.shape[1] for W in weights]
    mask = np.zeros((sum(rows), sum(columns)), dtype=bool)
    for i, W in enumerate(weights):
        mask[sum(rows[:i]) :, sum(columns[:i]) :][: rows[i], : columns[i]] = W != 0
    return mask, rows, columns


def model(folder: Path) -> tuple[Bool[np.ndarray, "r c"], list[int], list[int]]:
    """Read the same of the implicit model.

    Returns:
        The mask, and the sizes of its blocks, first layer first.
    """
    found = matrices(folder)
    A, B, C, D = (M != 0 for M in (found.A, found.B, found.C, found.D))
    order = np.concatenate(
        np.split(np.arange(len(A)), np.cumsum([s for _, s in found.blocks]))[::-1]
    )
    hidden = [size for _, size in found.blocks][::-1]
    mask = np.block([[B[order], A[np.ix_(order, order)]], [D, C[:, order]]])
    return mask, [*hidden, len(D)], [D.shape[1], *hidden]


def pattern(axes: Axes, mask: np.ndarray, rows: list[int], columns: list[int]) -> None:
    """Draw which weights there are; a block is as long as the root of its size."""
    y, x = Ruler(tuple(rows)), Ruler(tuple(columns))
    down, across = y(np.arange(len(mask) + 1)), x(np.arange(mask.shape[1] + 1))
    axes.pcolormesh(across, down, mask, cmap="Blues", vmin=0, vmax=1.4, rasterized=True)
    for edge in y(y.starts):
        axes.axhline(edge, color="#999999", linewidth=0.7)
    for edge in x(x.starts):
        axes.axvline(edge, color="#999999", linewidth=0.7)
    middles = [(ruler(ruler.starts)[1:] + ruler(ruler.starts)[:-1]) / 2 for ruler in (y, x)]
    axes.set_yticks(middles[0], ["hidden 1", "hidden 2", "output"], rotation=90, va="center")
    axes.set_xticks(middles[1], ["input", "hidden 1", "hidden 2"])
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("a column for each value that is read")


def curves(axes: Axes, records: list[dict]) -> None:
    """Draw test accuracy against the share of weights removed, a line a method."""
    colours = style.colours(NAMES)
    for method, name in NAMES.items():
        line = [r for r in records if r["model"] == method]
        x, y = ([100 * r[key] for r in line] for key in ("target", "test_accuracy"))
        wide = 2.4 if method == "implicit" else 1.4
        axes.plot(x, y, "o-", color=colours[method], linewidth=wide, markersize=3, label=name)
    axes.legend(loc="lower left")
    axes.set_ylim(0, 104)
    axes.set_xticks([50, 70, 80, 90, 95])
    axes.set_xlabel("weights removed, %")


@style.quiet
def draw() -> None:
    """Draw the network, the model and the accuracies side by side, and write the SVG."""
    records = json.loads((COMPARISON / "metrics.json").read_text("utf-8"))
    explicit = next(r for r in records if r["model"] == "explicit")
    chosen = next(r for r in records if r["model"] == "implicit" and r["target"] == SPARSITY)
    folder = COMPARISON / f"sparsity-{SPARSITY}"
    figure = style.new_figure(9.6, 3.1)
    axes = figure.subplots(1, 3)
    for place, name, found, record in (
        (axes[0], "The trained network", network(folder), explicit),
        (axes[1], "Its implicit model", model(folder), chosen),
    ):
        pattern(place, *found)
        accuracy = f"{100 * record['test_accuracy']:.1f} % right"
        place.set_title(f"{name}:\n{record['nonzeros']:,} weights, {accuracy}")
    axes[0].set_ylabel("a row for each unit")
    curves(axes[2], records)
    axes[2].set_title("Other sparsities and methods:\ntest accuracy, %")
    # no date and no random names: the same numbers give the same bytes
    with matplotlib.rc_context({"svg.hashsalt": "simplicit"}):
        figure.savefig(PATH, metadata={"Date": None, "Creator": None}, facecolor="white")


if __name__ == "__main__":
    if gallery.stale():
        gallery.build()
    draw()
