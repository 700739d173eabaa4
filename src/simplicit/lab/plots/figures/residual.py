"""Residual of the equilibrium against the step of its iteration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simplicit.errors import InputError
from simplicit.lab.plots import style
from simplicit.lab.plots.save import Drawing
from simplicit.lab.results import read

TITLE = "How the equilibrium converges"
CAPTION = (
    "How far x is from φ(Ax + Bu + b) after each step, relative to x: the thick line is "
    "the median sample, the thin one the worst, one pair of lines a seed. Look for straight lines "
    "downwards (a contraction) or for a drop to exactly 0 after as many steps as there are layers "
    "(a triangular A); a line that stays up would be a sample without an answer."
)


@style.quiet
def draw(convergence: Sequence[Mapping[str, Any]]) -> Drawing:
    """Draw the residuals.

    Args:
        convergence: Rows with `model`, `seed`, `step`, `residual_median`, `residual_max`.

    Returns:
        The figure, and what it shows.

    Raises:
        InputError: If no residual is a finite number.
    """
    residuals = np.array([read.numbers(convergence, f"residual_{c}") for c in ("median", "max")])
    if not np.isfinite(residuals).any():
        raise InputError("convergence.csv holds no finite residual")
    steps = read.numbers(convergence, "step")
    runs = [(str(row["model"]), str(row["seed"])) for row in convergence]
    colour = style.colours(model for model, _ in runs)
    figure = style.new_figure(6.0, 3.6)
    axes = figure.add_subplot()
    floor = style.log_scale(axes, residuals)
    for model, seed in dict.fromkeys(runs):
        rows = np.array([run == (model, seed) for run in runs])
        median, worst = style.on_log(residuals[:, rows], floor)
        first = seed == next(s for m, s in runs if m == model)
        dots: dict[str, Any] = {"color": colour[model], "marker": "o" if rows.sum() <= 20 else ""}
        axes.plot(steps[rows], worst, **dots, linewidth=0.7, markersize=2)
        axes.plot(
            steps[rows], median, **dots, markersize=3, label=model if first else None, zorder=3
        )
    axes.set_xlabel("step")
    axes.set_ylabel("relative residual")
    axes.locator_params(axis="x", integer=True)
    if len({model for model, _ in runs}) > 1:
        axes.legend()
    columns = ("model", "seed", "step", "residual_median", "residual_max")
    return Drawing(figure, [{c: row.get(c, "") for c in columns} for row in convergence])


def from_run(run_dir: Path) -> Drawing:
    """Draw the convergence a run folder has recorded in `convergence.csv`.

    Args:
        run_dir: The run folder.

    Returns:
        As `draw`.

    Raises:
        InputError: As `draw`, and where no model takes more than one step.
    """
    columns = ("model", "seed", "step", "residual_median", "residual_max")
    rows = read.table(run_dir / "convergence.csv", columns)
    if rows and all(read.number(row["step"]) == 1 for row in rows):
        raise InputError("one pass through the layers is exact, so there is no iteration to draw")
    return draw(rows)
