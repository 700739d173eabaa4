"""Figures of a run folder: one figure a file, read from files alone, drawn without torch.

Every figure module offers `TITLE`, `CAPTION` (what to look at), `draw(data) -> Drawing` and
`from_run(run_dir) -> Drawing`; a new figure is a new file and one more entry of `FIGURES`.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from simplicit.errors import InputError
from simplicit.lab.plots.figures import (
    adversarial,
    budget,
    comparison,
    curves,
    gap,
    layers,
    magnitudes,
    pattern,
    pixels,
    residual,
    robustness,
    sensitivity,
    speed,
    ways,
)
from simplicit.lab.plots.save import Drawing, save
from simplicit.system.files import write_json

__all__ = [
    "COMPARED",
    "FIGURES",
    "ROBUSTNESS",
    "SKIPPED",
    "SPEED",
    "Drawing",
    "draw_all",
    "figures_of",
]

FIGURES = {
    "comparison": comparison,
    "layers": layers,
    "budget": budget,
    "pattern": pattern,
    "magnitudes": magnitudes,
    "pixels": pixels,
    "gap": gap,
    "residual": residual,
}
"""The figures in the order a reader wants them; each is saved under its name."""

ROBUSTNESS = {
    "robustness": robustness,
    "sensitivity": sensitivity,
    "adversarial": adversarial,
}
"""The further figures of a run with metric robustness."""

SPEED = {"speed": speed, "ways": ways}
"""The further figures of a run that has timed its models."""

COMPARED = {"curves": curves, "speed": speed}
"""The figures of a comparison."""

SKIPPED = "skipped.json"
"""In the folder of plots: the name of every figure that could not be drawn, and why."""


def figures_of(run_dir: Path) -> Mapping[str, ModuleType]:
    """Say which figures a run folder should have.

    Args:
        run_dir: The run folder.

    Returns:
        `FIGURES`, and `SPEED` and `ROBUSTNESS` where the run has measured that.
    """
    timed = SPEED if (run_dir / "speed.csv").exists() else {}
    return FIGURES | timed | (ROBUSTNESS if (run_dir / "robustness.csv").exists() else {})


def draw_all(run_dir: Path, figures: Mapping[str, ModuleType] | None = None) -> list[Path]:
    """Draw every figure the run folder has the data for.

    Each goes to `plots/<name>.png` with the numbers behind it in `plots/<name>.csv`; what had
    to be left out is written with its reason to `plots/skipped.json`.

    Args:
        run_dir: A run folder, finished or not.
        figures: Which; those of `figures_of` by default.

    Returns:
        The paths of the PNG files.

    Raises:
        InputError: If `run_dir` is not a folder.
    """
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such run folder; accepted is one that `run` has written")
    plots = run_dir / "plots"
    plots.mkdir(exist_ok=True)
    drawn, skipped = [], {}
    for name, figure in (figures or figures_of(run_dir)).items():
        path = plots / f"{name}.png"
        try:
            save(figure.from_run(run_dir), path)
        except InputError as reason:
            skipped[name] = str(reason)
            path.unlink(missing_ok=True)  # a figure of earlier data would mislead
            path.with_suffix(".csv").unlink(missing_ok=True)
        else:
            drawn.append(path)
    write_json(plots / SKIPPED, skipped)
    return drawn
