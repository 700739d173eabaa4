"""One quiet look for every figure; colours of Okabe and Ito, distinct to the colour-blind."""

from collections.abc import Callable, Iterable
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

EXPLICIT = "#767676"
IMPLICIT = "#0072B2"
ACCENT = "#D55E00"
INK = "#333333"
FAINT = "#d9d9d9"
OTHERS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#8C564B")

QUIET: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
}

quiet: Callable = matplotlib.rc_context(QUIET)
"""Decorator: the function draws in this style, and the global settings stay as they were."""


def new_figure(width: float, height: float) -> Figure:
    """Make a figure that belongs to nobody: no pyplot, hence nothing to close.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        An empty figure which arranges what is put on it.
    """
    return Figure(figsize=(width, height), dpi=200, layout="constrained")


def colours(models: Iterable[str]) -> dict[str, str]:
    """Give every model its colour, the same in all figures of a run.

    Args:
        models: Names, `explicit` and `implicit` among them or not.

    Returns:
        A colour for each name.
    """
    fixed = {"explicit": EXPLICIT, "implicit": IMPLICIT}
    others = [m for m in dict.fromkeys(models) if m not in fixed]
    return fixed | {m: OTHERS[i % len(OTHERS)] for i, m in enumerate(others)}


def log_scale(axes: Axes, values: Float[np.ndarray, "*any"]) -> float:
    """Give `axes` a logarithmic vertical axis on which an exact zero still has a place.

    Args:
        axes: What the values will be drawn on.
        values: Everything that will be drawn; what is not finite is passed over.

    Returns:
        The height to draw zeros at: below every positive value, marked "exactly 0" if needed.
    """
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (1e-16, 1.0)
    floor = max(float(low) / 30, 1e-300)
    zeros = bool((values <= 0).any())
    # whole decades, so that there are two labels at least; ten times as many ticks say no more
    bottom, top = np.floor(np.log10(floor if zeros else low)), np.ceil(np.log10(high))
    axes.set_yscale("log")
    axes.set_ylim(10.0**bottom, 10.0 ** max(top, bottom + 1))
    axes.minorticks_off()
    if zeros:
        axes.axhline(floor, color=FAINT, linewidth=0.8, zorder=0.5)
        axes.text(
            0.01, floor, "exactly 0", transform=axes.get_yaxis_transform(),
            ha="left", va="bottom", fontsize=7, color="#666666",
        )  # fmt: skip
    return floor


def on_log(values: Float[np.ndarray, "*any"], floor: float) -> Float[np.ndarray, "*any"]:
    """Make values drawable on a logarithmic axis.

    Args:
        values: Any shape.
        floor: Where zeros (and less) go.

    Returns:
        The values with zeros at `floor`; infinite ones become nan and leave a hole in the line.
    """
    return np.where(np.isfinite(values), np.maximum(values, floor), np.nan)
