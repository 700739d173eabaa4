"""Accuracy against the radius: clean, attacked and certified, model by model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from simplicit.errors import InputError
from simplicit.lab.plots import style
from simplicit.lab.plots.save import Drawing
from simplicit.lab.results import read

TITLE = "Accuracy under attack, and certified"
CAPTION = (
    "Accuracy against the radius of the l∞ ball, one panel a model. The upper line is the accuracy "
    "under the strongest attack, what is left of the clean accuracy (dotted); the lower line is "
    "what is proved. The truth lies in the band between them. Thin vertical lines are binomial "
    "95 % intervals of all seeds' samples together. Look at how far the lower line stays up, and "
    "at how wide the band is."
)

CERTIFIED, CLEAN = "certified", "clean"

INSIDE = ("fgsm", "pgd", "pgd-100", "transfer", "corners", "brightness", "autoattack", "foolbox")
"""Attacks in the l∞ ball; the others are in the table only."""


@style.quiet
def draw(rows: Sequence[Mapping[str, Any]]) -> Drawing:
    """Draw one panel a model.

    Args:
        rows: Of `robustness.csv`.

    Returns:
        The figure, and what it shows.
    """
    curves = worst_and_certified(rows)
    models = list(dict.fromkeys(row["model"] for row in curves))
    columns = min(3, len(models))
    lines = -(-len(models) // columns)
    figure = style.new_figure(2.9 * columns, 0.4 + 2.3 * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    colour = style.colours(models)
    for axes, model in zip(grid.flat, models, strict=False):
        own = [row for row in curves if row["model"] == model]
        eps = np.array([row["eps"] for row in own])
        at = np.arange(len(eps))  # radii are far from evenly spaced
        attacked, proved = (np.array([r[c] for r in own]) for c in ("attacked", "certified"))
        axes.fill_between(at, proved, attacked, color=colour[model], alpha=0.18, linewidth=0)
        for name, values in (("attacked", attacked), ("certified", proved)):
            spread = np.abs(
                np.array([[r[f"{name}_low"], r[f"{name}_high"]] for r in own]).T - values
            )
            axes.errorbar(
                at, values, spread, color=colour[model], elinewidth=0.7, marker="o", markersize=3,
                linestyle="-" if name == "attacked" else "--",
            )  # fmt: skip
        axes.axhline(own[0]["clean"], color="#999999", linewidth=0.9, linestyle=":")
        axes.set_xticks(at, [f"{value:g}" for value in eps])
        axes.set_title(model)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylim(0, 1)
    for axes in grid.flat[len(models) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy")
    for axes in grid.flat[max(0, len(models) - columns) : len(models)]:
        axes.set_xlabel("radius, l∞")
        axes.xaxis.set_tick_params(labelbottom=True)  # also where nothing is drawn below
    return Drawing(figure, curves)


def worst_and_certified(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sum up the table: for each model and radius clean, attacked and certified accuracy.

    Args:
        rows: Of `robustness.csv`.

    Returns:
        Means over the seeds; `attacked` is the attack in the l∞ ball that leaves least, or clean
        without one. `…_low` and `…_high` are the binomial intervals, as wide as for all seeds
        together.

    Raises:
        InputError: If a model was not measured.
    """
    found = []
    models = dict.fromkeys(str(row["model"]) for row in rows)
    for model in models:
        own = [row for row in rows if row["model"] == model]
        for eps in sorted({read.number(row["eps"]) for row in own}):
            here = [row for row in own if read.number(row["eps"]) == eps]
            by = {a: [r for r in here if r["attack"] == a] for a in (CLEAN, CERTIFIED, *INSIDE)}
            if not by[CLEAN] or not by[CERTIFIED]:
                raise InputError(f"robustness.csv: {model} has no clean or certified accuracy")
            attacks = [a for a in INSIDE if by[a]] or [CLEAN]
            worst = min(attacks, key=lambda a: _mean(by[a], "accuracy"))
            record = {"model": model, "eps": eps, "clean": _mean(by[CLEAN], "accuracy")}
            for name, attack in (("attacked", worst), ("certified", CERTIFIED)):
                record[name] = value = _mean(by[attack], "accuracy")
                # seeds together have so many times the samples
                narrower = len(by[attack]) ** 0.5
                for end in ("low", "high"):
                    away = (_mean(by[attack], end) - value) / narrower
                    record[f"{name}_{end}"] = value + away
            found.append(record | {"attack": worst})
    return found


def _mean(rows: Sequence[Mapping[str, Any]], column: str) -> float:
    return float(read.numbers(rows, column).mean())


def from_run(run_dir: Path) -> Drawing:
    """Draw a run folder's robustness.

    Args:
        run_dir: The run folder.

    Returns:
        As `draw`.
    """
    columns = ("model", "attack", "eps", "accuracy", "low", "high")
    return draw(read.table(run_dir / "robustness.csv", columns))
