"""The sensitivity matrix as images: which pixel can move which class, and how far."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.colors import LogNorm

from simplicit.errors import InputError
from simplicit.lab.plots import style
from simplicit.lab.plots.figures.pixels import image_shape
from simplicit.lab.plots.save import Drawing
from simplicit.lab.results.shown import shown

TITLE = "Which pixel moves which class"
CAPTION = (
    "The sensitivity matrix |C|(I−|A|)⁻¹|B|+|D|, a bound on how far a class's logit can move per "
    "unit of a pixel, for any image: one row of images a model, one image a class, channels added "
    "up, one logarithmic scale for all. Look for what is pale in one row and dark in another."
)


@style.quiet
def draw(matrices: Mapping[str, Float[np.ndarray, "q p"]], shape: tuple[int, ...]) -> Drawing:
    """Draw a row of images for each model.

    Args:
        matrices: The sensitivity matrix of each model.
        shape: Shape of one sample.

    Returns:
        The figure, and for each model and class the sum over the pixels and the largest.

    Raises:
        InputError: If samples are not images, or nothing is sensitive to anything.
    """
    size = image_shape(shape)
    images = {model: S.reshape(len(S), -1, *size[-2:]).sum(axis=1) for model, S in matrices.items()}
    largest = max(float(image.max()) for image in images.values())
    if not largest > 0:
        raise InputError("no input moves any output")
    classes = len(next(iter(images.values())))
    figure = style.new_figure(0.8 + 0.72 * classes, 0.3 + 0.85 * len(images))
    grid = figure.subplots(len(images), classes, squeeze=False)
    scale, last = LogNorm(largest / 1000, largest), None
    for line, (model, image) in zip(grid, images.items(), strict=True):
        for label, axes in enumerate(line):
            last = axes.imshow(np.maximum(image[label], largest / 1000), cmap="magma_r", norm=scale)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
            if axes in grid[0]:
                axes.set_title(f"class {label}", fontsize=7)
        line[0].set_ylabel(model, fontsize=7)
    assert last is not None
    bar = figure.colorbar(last, ax=grid, shrink=0.7, pad=0.01)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    data = [
        {"model": model, "class": label, "sum": float(row.sum()), "largest": float(row.max())}
        for model, S in matrices.items()
        for label, row in enumerate(S)
    ]
    return Drawing(figure, data)


def from_run(run_dir: Path) -> Drawing:
    """Draw a run folder's sensitivity matrices.

    Args:
        run_dir: The run folder.

    Returns:
        As `draw`.
    """
    found = shown(run_dir)
    shape = next(iter(found.values()))["inputs"].shape[1:]
    return draw({model: parts["sensitivity"] for model, parts in found.items()}, shape)
