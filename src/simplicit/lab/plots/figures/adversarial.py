"""Attacked images, and what each model takes them for."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from simplicit.lab.plots import style
from simplicit.lab.plots.figures.pixels import image_shape
from simplicit.lab.plots.save import Drawing
from simplicit.lab.results.shown import shown

TITLE = "Attacked images"
CAPTION = (
    "The first test images as they are, and as PGD changes them for each model at the radius above "
    "them; below each, the class that model gives it, in orange where the attack has succeeded. "
    "Look at how visible a change has to be."
)


@style.quiet
def draw(found: Mapping[str, Mapping[str, np.ndarray]]) -> Drawing:
    """Draw the images in a grid: samples down, models and radii across.

    Args:
        found: As `shown` returns.

    Returns:
        The figure, and the class given to each image.
    """
    models = [m for m in found if m in ("explicit", "implicit")] or list(found)[:1]
    first = found[models[0]]
    size = image_shape(first["inputs"].shape[1:])
    radii = [float(eps) for eps in first["radii"]]
    picked = sorted({0, len(radii) // 2, len(radii) - 1})
    across = [(m, i) for m in models for i in picked]
    samples = len(first["labels"])
    figure = style.new_figure(0.85 * (1 + len(across)), 0.4 + 0.95 * samples)
    grid = figure.subplots(samples, 1 + len(across), squeeze=False)
    data = []
    for sample, line in enumerate(grid):
        label = int(first["labels"][sample])
        _show(line[0], first["inputs"][sample], size, f"{label}", style.INK)
        for axes, (model, i) in zip(line[1:], across, strict=True):
            given = int(found[model]["predicted"][i, sample])
            colour = style.INK if given == label else style.ACCENT
            _show(axes, found[model]["attacked"][i, sample], size, f"{given}", colour)
            data.append(
                {"sample": sample, "class": label, "model": model, "eps": radii[i], "given": given}
            )
    grid[0][0].set_title("as it is", fontsize=7)
    for axes, (model, i) in zip(grid[0][1:], across, strict=True):
        axes.set_title(f"{model}\n{radii[i]:g}", fontsize=7)
    return Drawing(figure, data)


def _show(axes, image: np.ndarray, size: tuple[int, ...], below: str, colour: str) -> None:
    picture = image.reshape(-1, *size[-2:])
    if len(picture) == 3:
        axes.imshow(np.moveaxis(picture, 0, -1).clip(0, 1))
    else:
        axes.imshow(picture.mean(axis=0), cmap="gray_r", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.set_xlabel(below, fontsize=7, color=colour, labelpad=1)


def from_run(run_dir: Path) -> Drawing:
    """Draw a run folder's attacked images.

    Args:
        run_dir: The run folder.

    Returns:
        As `draw`.
    """
    return draw(shown(run_dir))
