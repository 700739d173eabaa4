"""How many weights read each pixel, for models whose input is an image."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Int

from simplicit.errors import InputError
from simplicit.lab.plots import style
from simplicit.lab.plots.save import Drawing
from simplicit.lab.results.matrices import Matrices, matrices

TITLE = "Which pixels are read"
CAPTION = (
    "The number of non-zero weights in each pixel's columns of B and D (channels added up). "
    "White pixels are never read: the model needs no sensor there. Look at whether the dark "
    "ones lie where the objects are."
)


@style.quiet
def draw(counts: Int[np.ndarray, "height width"]) -> Drawing:
    """Draw the counts as an image.

    Args:
        counts: Non-zero weights that read each pixel.

    Returns:
        The figure, and `row`, `column`, `weights` of every pixel.
    """
    figure = style.new_figure(4.6, 4.0)
    axes = figure.add_subplot()
    image = axes.imshow(
        np.where(counts > 0, counts, np.nan), cmap="viridis_r", vmin=1, vmax=max(2, counts.max())
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.85, format="%d")
    bar.set_label("weights that read the pixel")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    axes.set_title(f"{(counts > 0).sum():,} of {counts.size:,} pixels are read")
    axes.grid(False)
    axes.spines[:].set_visible(True)
    axes.set_xlabel("column")
    axes.set_ylabel("row")
    return Drawing(
        figure,
        [
            {"row": row, "column": column, "weights": int(count)}
            for (row, column), count in np.ndenumerate(counts)
        ],
    )


def pixel_counts(model: Matrices) -> Int[np.ndarray, "height width"]:
    """Count the non-zero weights that read each pixel.

    Args:
        model: The matrices; an input that was flattened is taken for a square image.

    Returns:
        The counts as an image, channels added up.
    """
    shape = image_shape(model.input_shape)
    counts = (model.B != 0).sum(axis=0) + (model.D != 0).sum(axis=0)
    return counts.reshape(-1, *shape[-2:]).sum(axis=0)


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Find height and width of a sample.

    Args:
        shape: Of one sample; one that was flattened is taken for a square image.

    Returns:
        (height, width) or (channels, height, width).

    Raises:
        InputError: If one sample is not an image.
    """
    side = math.isqrt(math.prod(shape))
    if len(shape) == 1 and side * side == shape[0] and side >= 8:
        return (side, side)
    if len(shape) not in (2, 3):
        raise InputError(f"the input of shape {shape} is not an image (height, width)")
    return shape


def from_run(run_dir: Path) -> Drawing:
    """Draw which pixels a run folder's saved model reads.

    Args:
        run_dir: The run folder.

    Returns:
        As `draw`.
    """
    return draw(pixel_counts(matrices(run_dir)))
