"""Sparsity pattern of [A B; C D] with the layer blocks marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes

from simplicit.lab.plots import style
from simplicit.lab.plots.save import Drawing
from simplicit.lab.results.matrices import Matrices, matrices

TITLE = "Which weights are left"
CAPTION = (
    "Every dot is a non-zero entry of [A B; C D]: its row is the unit that is computed, its column "
    "what that unit reads. A block's sides grow with the square root of its size, so that small "
    "layers stay visible; its number is the share of entries left, and a grey block is empty. "
    "Look for blank columns (inputs nobody reads) and for dots in blocks that a plain chain of "
    "layers does not have (connections that skip layers)."
)

CELLS = (700, 1400)
"""Most rows and columns of cells, near what the pixels resolve; smaller entries share a cell."""


@dataclass(frozen=True)
class Ruler:
    """Where entries lie on an axis on which a block is as long as the root of its size."""

    sizes: tuple[int, ...]

    @property
    def starts(self) -> Int[np.ndarray, " blocks1"]:
        """Index of each block's first entry, and the end."""
        return np.append(0, np.cumsum(self.sizes))

    def __call__(self, index: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        """Place of entries on the axis.

        Returns:
            A coordinate for each index.
        """
        return np.interp(index, self.starts, np.append(0.0, np.sqrt(self.sizes).cumsum()))

    def cells(self, most: int) -> Int[np.ndarray, " k"]:
        """Divide every block into cells of an entry or more, about `most` on the whole axis.

        Returns:
            The edges of the cells; edges of blocks are among them.
        """
        share = np.sqrt(self.sizes) / np.sqrt(self.sizes).sum()
        parts = [
            np.linspace(a, b, min(b - a, max(1, int(most * part))), endpoint=False).astype(int)
            for a, b, part in zip(self.starts, self.starts[1:], share, strict=False)
        ]
        return np.concatenate([*parts, self.starts[-1:]])


@style.quiet
def draw(model: Matrices) -> Drawing:
    """Draw the pattern.

    Args:
        model: The matrices and the sizes of their blocks.

    Returns:
        The figure, and the cells that are not empty: `row` and `column` of the cell's first
        entry, `density` the fraction of its entries that are not zero.
    """
    nonzero = model.whole != 0
    y, x = (Ruler(tuple(size for _, size in side)) for side in (model.rows, model.columns))
    rows, columns = y.cells(CELLS[0]), x.cells(CELLS[1])
    density = merge(nonzero, rows, columns)
    figure = style.new_figure(10.0, 6.0)
    axes = figure.add_subplot()
    axes.pcolormesh(
        x(columns), y(rows), np.where(density > 0, 0.35 + 0.65 * density, np.nan),
        cmap="Blues", vmin=0, vmax=1.2, antialiased=False, zorder=2,
    )  # fmt: skip
    _mark_blocks(axes, nonzero, y, x)
    _name_blocks(axes, model, y, x)
    return Drawing(
        figure,
        [
            {
                "row": int(rows[i]),
                "column": int(columns[j]),
                "density": round(float(density[i, j]), 6),
            }
            for i, j in zip(*np.nonzero(density), strict=True)
        ],
    )


def merge(
    nonzero: Bool[np.ndarray, "rows columns"],
    rows: Int[np.ndarray, " r1"],
    columns: Int[np.ndarray, " c1"],
) -> Float[np.ndarray, "r c"]:
    """Merge entries into cells, so that none is lost between two pixels.

    Args:
        nonzero: Where the matrix is not zero.
        rows: Edges of the cells' rows, increasing, from 0 to the number of rows.
        columns: Likewise.

    Returns:
        The fraction of each cell's entries that are not zero.
    """
    counts = np.add.reduceat(nonzero.astype(np.int64), rows[:-1], axis=0)
    counts = np.add.reduceat(counts, columns[:-1], axis=1)
    return counts / np.outer(np.diff(rows), np.diff(columns))


def _mark_blocks(axes: Axes, nonzero: np.ndarray, y: Ruler, x: Ruler) -> None:
    for rows in zip(y.starts, y.starts[1:], strict=False):
        for columns in zip(x.starts, x.starts[1:], strict=False):
            share = nonzero[slice(*rows), slice(*columns)].mean()
            across, down = x(np.array(columns)), y(np.array(rows))
            axes.fill_between(
                across, *down, facecolor="none" if share else "#f0f0f0",
                edgecolor="#888888", linewidth=0.7, zorder=3,
            )  # fmt: skip
            if share:
                axes.annotate(
                    f"{share:.0%}" if share >= 0.01 else "<1%",
                    (across[0], down[0]), (3, -3), textcoords="offset points",
                    ha="left", va="top", fontsize=7, zorder=4,
                    bbox={"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none"},
                )  # fmt: skip


def _name_blocks(axes: Axes, model: Matrices, y: Ruler, x: Ruler) -> None:
    def middles(ruler: Ruler) -> Float[np.ndarray, " blocks"]:
        edges = ruler(ruler.starts)
        return (edges[:-1] + edges[1:]) / 2

    axes.set_yticks(middles(y), _labels(model.rows, " "))
    axes.set_xticks(middles(x), _labels(model.columns, "\n"))
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlim(*x(x.starts[[0, -1]]))
    axes.set_ylim(*y(y.starts[[-1, 0]]))
    axes.set_ylabel("computed unit")
    axes.set_xlabel("what it reads")


def _labels(blocks: Sequence[tuple[str, int]], between: str) -> list[str]:
    return [f"{name}{between}({size})" for name, size in blocks]


def from_run(run_dir: Path) -> Drawing:
    """Draw the pattern of a run folder's saved model.

    Args:
        run_dir: The run folder.

    Returns:
        As `draw`.
    """
    return draw(matrices(run_dir))
