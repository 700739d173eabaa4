"""What a run has found, from its tables: sentences and sums that the report shows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from simplicit.lab.methods import KINDS, Kind
from simplicit.lab.results import read
from simplicit.matching.records import UNSOLVED

Row = dict[str, Any]

MINUS = "\N{MINUS SIGN}"

NEAR = 0.005
"""Sparsities that differ by less are called the same."""


def summary(metrics: Sequence[Row]) -> str:
    """Say in words what the run has found.

    Args:
        metrics: Rows of `metrics.json`.

    Returns:
        A paragraph; its numbers are means over the seeds, its norm the largest of them.
    """
    explicit, implicit = (
        [row for row in metrics if row["model"] == model] for model in ("explicit", "implicit")
    )
    if not implicit:
        return "This run has no implicit model yet."
    before, after = mean(explicit, "test_accuracy"), mean(implicit, "test_accuracy")
    sparsity, converged = mean(implicit, "sparsity"), mean(implicit, "converged")
    said = []
    if math.isfinite(after):
        said.append(f"The implicit model classifies {percent(after)} of the test samples correctly")
        if math.isfinite(before):
            said[-1] += f", the explicit network {percent(before)}: {_points(after - before)}"
    if math.isfinite(sparsity):
        said.append(
            f"It has {1 - sparsity:.3g} times the explicit network's non-zero weights, "
            f"a sparsity of {percent(sparsity)}"
        )
        said[-1] += "" if sparsity >= 0 else " (negative: it has more)"
    if norms := [read.number(r["certificate_norm"]) for r in implicit if "certificate_norm" in r]:
        proven = all(norm < 1 for norm in norms)  # not so for nan
        method = " and ".join(dict.fromkeys(str(r.get("certificate_method")) for r in implicit))
        said.append(
            f"It is provably well-posed, every input has exactly one equilibrium: its state matrix "
            f"has norm {max(norms):.6g} < 1 ({method})"
            if proven
            else "Its well-posedness is not proven: no norm of its state matrix below 1 was found"
        )
    if math.isfinite(converged):
        share = "all" if converged == 1 else f"{percent(converged)} of the"
        said.append(f"The equilibrium was found for {share} test samples")
    if (seeds := len({str(row.get("seed")) for row in implicit})) > 1:
        said.append(f"Numbers are means over {seeds} seeds")
    return " ".join(f"{sentence}." for sentence in said)


def results(metrics: Sequence[Row]) -> list[Row]:
    """Complete the metrics with `points` and, for several seeds, one mean a model.

    Args:
        metrics: Rows of `metrics.json`.

    Returns:
        The rows with `points`, the accuracy gained over the explicit network of the same seed
        in percentage points, followed by the means, whose `seed` is `mean`.
    """
    columns = ("test_accuracy", "points", "sparsity", "nonzeros", "parameters", "bytes", "seconds")
    explicit = {
        str(row.get("seed")): read.number(row.get("test_accuracy"))
        for row in metrics
        if row["model"] == "explicit"
    }
    rows = []
    for row in metrics:
        before = explicit.get(str(row.get("seed")), math.nan)
        points = 100 * (read.number(row.get("test_accuracy")) - before)
        rows.append(row | {"points": math.nan if row["model"] == "explicit" else points})
    means = []
    for model in dict.fromkeys(row["model"] for row in rows):
        same = [row for row in rows if row["model"] == model]
        if len(same) > 1:
            average = {column: mean(same, column) for column in columns}
            means.append({"model": model, "seed": "mean"} | average)
    return rows + means


def kinds(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Sort the compared models by what may be compared with what.

    Args:
        rows: Metrics rows of a comparison.

    Returns:
        Kinds, each with its models in the order of the rows; none is empty.
    """
    models = dict.fromkeys(row["model"] for row in rows if "target" in row)
    sorted_out = {kind.value: [m for m in models if KINDS[m] is kind] for kind in Kind}
    return {kind: names for kind, names in sorted_out.items() if names}


def cells(rows: Sequence[Row], column: str) -> dict[tuple[str, float], Row]:
    """Sum up one column of a comparison over the seeds.

    Args:
        rows: Metrics rows of a comparison.
        column: A number of theirs.

    Returns:
        For each model and target its `mean`, its `spread` (sample standard deviation, None of one
        seed), the `sparsity` it has where that is not the target, else None, and whether it is
        the `best` of its kind there, among those that are as sparse as was asked for.
    """
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        if "target" in row:
            groups.setdefault((row["model"], row["target"]), []).append(row)
    found: dict[tuple[str, float], Row] = {}
    for (model, target), same in groups.items():
        values, sparsity = read.numbers(same, column), mean(same, "sparsity")
        found[model, target] = {
            "mean": float(values.mean()),
            "spread": float(values.std(ddof=1)) if len(values) > 1 else None,
            "sparsity": sparsity if abs(sparsity - target) > NEAR else None,
            "best": False,
        }
    for models in kinds(rows).values() if column != "seconds" else ():
        for target in {target for _, target in found}:
            same = [found[m, target] for m in models if (m, target) in found]
            if fair := [c for c in same if c["sparsity"] is None or c["sparsity"] > target]:
                max(fair, key=lambda cell: cell["mean"])["best"] = True
    return found


def compared(rows: Sequence[Row]) -> str:
    """Say in words how the implicit model does at each sparsity.

    Args:
        rows: Metrics rows of a comparison, completed by `results`.

    Returns:
        A sentence or two.
    """
    losses = cells(rows, "points")
    said = [
        f"{_signed(cell['mean'])} points at {percent(target)}"
        for (model, target), cell in losses.items()
        if model == "implicit" and math.isfinite(cell["mean"])
    ]
    if not said:
        return "This comparison has no implicit model beside its explicit network."
    ahead = [cell["best"] for (model, target), cell in losses.items() if model == "implicit"]
    others = len(kinds(rows).get(Kind.ONE_SHOT, [])) - 1
    sentence = (
        f"Test accuracy of the implicit model minus the explicit network's: {', '.join(said)}."
    )
    if others > 0:
        where = "every sparsity" if all(ahead) else f"{sum(ahead)} of {len(ahead)} sparsities"
        sentence += f" Of {others + 1} one-shot methods it is the most accurate at {where}."
    return sentence


def layers(rows: Sequence[Mapping[str, str]], names: Mapping[str, str]) -> list[Row]:
    """Sum up the row problems of each layer.

    Args:
        rows: `rows.csv`.
        names: What to call a layer, where that is not its own name.

    Returns:
        One row a layer and seed. `worst` is the largest relative gap of the solved rows; `other`
        counts the rest by status, each with its largest relative distance from the dual bound.
    """
    groups: dict[tuple[str, str], dict[str, list[Mapping[str, str]]]] = {}
    for row in rows:
        group = groups.setdefault((row.get("seed", ""), row["layer"]), {})
        group.setdefault(row["status"].lower(), []).append(row)
    found = []
    for (seed, layer), by_status in groups.items():
        everything = [row for rows in by_status.values() for row in rows]
        solved = by_status.pop("solved", [])
        other = [
            f"{len(rows)} × {status}"
            + (f" ({_worst(rows):.2g})" if status not in UNSOLVED else "")  # they have no bound
            for status, rows in by_status.items()
        ]
        found.append(
            {
                "layer": names.get(layer, layer),
                "seed": seed,
                "rows": len(everything),
                "solved": len(solved),
                "worst": _worst(solved),
                "other": ", ".join(other),
                "nonzeros": read.numbers(everything, "nonzeros").sum(),
                "iterations": read.numbers(everything, "iterations").max(),
            }
        )
    return found


def _worst(rows: Sequence[Mapping[str, str]]) -> float:
    return float(read.numbers(rows, "relative_gap").max()) if rows else math.nan  # nan if one is


def mean(rows: Sequence[Row], column: str) -> float:
    """Average a column.

    Args:
        rows: Any number of rows.
        column: Its name.

    Returns:
        The mean of the rows' numbers; nan if there is no row or a number is missing.
    """
    return float(read.numbers(rows, column).mean()) if rows else math.nan


def percent(fraction: float) -> str:
    """Write a fraction for a reader.

    Args:
        fraction: Any number.

    Returns:
        Percent with two digits after the point; 100.00 % means all, it is not rounded up to.
    """
    percentage = 100 * fraction
    if fraction < 1:
        percentage = min(percentage, 99.99)
    return f"{percentage:.2f} %".replace("-", MINUS)


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", MINUS)


def _points(change: float) -> str:
    points = round(100 * change, 2)
    if points == 0:
        return "none lost"
    return f"{abs(points):.2f} points {'gained' if points > 0 else 'lost'}"
