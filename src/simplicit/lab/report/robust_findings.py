"""What a run has found of robustness: a table, and whether the attacks can be believed."""

from collections.abc import Mapping, Sequence
from typing import Any

from simplicit.lab.plots.figures.robustness import INSIDE
from simplicit.lab.report.findings import percent
from simplicit.lab.results import read

Row = Mapping[str, Any]

MORE_STEPS = 0.01
"""By so much may five times the steps lower the accuracy before the attack is called too short."""


def robust_cells(rows: Sequence[Row]) -> dict[str, Any]:
    """Sum the table up over the seeds.

    Args:
        rows: Of `robustness.csv`; may be empty.

    Returns:
        `radii`, and `lines`: for each model and attack or bound the mean `accuracies` at the
        radii, the largest `radius` mean (of bounds), the `violations` and the `seconds` for ten
        thousand samples.
    """
    radii = sorted({read.number(row["eps"]) for row in rows})
    lines = []
    for model, attack in dict.fromkeys((row["model"], row["attack"]) for row in rows):
        own = [row for row in rows if (row["model"], row["attack"]) == (model, attack)]
        at = [[r for r in own if read.number(r["eps"]) == eps] for eps in radii]
        samples = float(read.numbers(own, "samples").mean())
        lines.append(
            {
                "model": model,
                "attack": attack,
                "accuracies": [_mean(here, "accuracy") for here in at],
                "radius": _mean(own, "mean_radius"),
                "violations": int(read.numbers(own, "violations").sum()),
                "seconds": 1e4 * _mean(own, "seconds") / samples,
            }
        )
    return {"radii": radii, "lines": lines}


def robust_checks(rows: Sequence[Row]) -> list[str]:
    """Ask of every attack what Carlini et al., "On Evaluating Adversarial Robustness" (2019) ask.

    Args:
        rows: Of `robustness.csv`; may be empty.

    Returns:
        Sentences: violations of certificates, accuracy at the largest radius, more steps, and
        whether a black-box attack is stronger than one with gradients.
    """
    if not rows:
        return []
    attacked = [row for row in rows if row["attack"] in INSIDE]
    count = int(sum(read.number(row["samples"]) for row in attacked if read.number(row["eps"]) > 0))
    broken = int(sum(read.number(row["violations"]) for row in attacked))
    said = [f"{broken} violations of a certificate in {count:,} attacked samples."]
    cells = robust_cells(rows)
    lines = {(line["model"], line["attack"]): line for line in cells["lines"]}
    for model in dict.fromkeys(row["model"] for row in rows):
        pgd = lines.get((model, "pgd"))
        if pgd is None:
            continue
        last = pgd["accuracies"][-1]
        said.append(f"{model}: accuracy {percent(last)} under PGD at {cells['radii'][-1]:g}.")
        if longer := lines.get((model, "pgd-100")):
            pairs = zip(pgd["accuracies"], longer["accuracies"], strict=True)
            lost = max(before - after for before, after in pairs)
            verdict = "enough" if lost <= MORE_STEPS else "too few: trust pgd-100"
            said[-1] += (
                f" 100 steps lower it by {percent(max(lost, 0.0))} at most: 20 are {verdict}."
            )
        if transfer := lines.get((model, "transfer")):
            pairs = zip(pgd["accuracies"], transfer["accuracies"], strict=True)
            weaker = all(black >= white - MORE_STEPS for white, black in pairs)
            said[-1] += (
                " Attacks on the explicit network transfer no better than its own."
                if weaker
                else " Attacks on the explicit network are stronger: its own gradients mislead."
            )
    return said


def _mean(rows: Sequence[Row], column: str) -> float:
    found = read.numbers(rows, column)
    return float(found.mean()) if len(found) else float("nan")
