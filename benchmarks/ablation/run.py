"""What each choice buys: the implicit model in many variants, on the same explicit networks.

    python benchmarks/ablation/run.py accuracy --out ablation implicit.sparsity=0.9
    python benchmarks/ablation/run.py convolutions --out ablation-convolutions
    python benchmarks/ablation/run.py robustness --out ablation-robustness 'seeds=[0]'

`accuracy` (`convolutions`: of a LeNet) prints for each variant the test accuracy minus the explicit
network's in points for each seed, their mean, seconds. `robustness` prints means over the seeds:
points lost, sparsity, accuracy under PGD and certified accuracy beside the explicit network's, and
the mean certified radius as a multiple of the explicit network's, by intervals and by the tightest
bound. Each variant is a run folder; what is there already is not done again.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simplicit.lab.config import config
from simplicit.lab.report.findings import mean, results
from simplicit.lab.results import read
from simplicit.lab.run.compare import lend_networks
from simplicit.lab.run.run import run

CONFIGS = Path(__file__).parents[2] / "configs"

Variants = Mapping[str, Sequence[str]]

ACCURACY: Variants = {
    "default": (),
    "no biases": ("implicit.bias=false",),
    "no skip connections": ("implicit.structure=layered",),
    "inactive samples count fully": ("implicit.relu_aware=false",),
    "no sensitivity weights": ("implicit.sensitivity=false",),
    "open loop": ("implicit.closed_loop=false",),
    "no joint matching": ("implicit.sweeps=0",),
    "no joint matching, open loop": ("implicit.sweeps=0", "implicit.closed_loop=false"),
    "no joint matching, not ReLU-aware": ("implicit.sweeps=0", "implicit.relu_aware=false"),
    "full A, ball of 0.99": ("implicit.structure=full",),
    "full A, splitting": ("implicit.structure=full", "implicit.support=splitting"),
    "elimination chooses supports": ("implicit.support=elimination",),
    "relaxation chooses supports": ("implicit.support=relaxation",),
}

CONVOLUTIONS: Variants = {
    "default": (),
    "elimination chooses supports": ("implicit.support=elimination",),
    "relaxation chooses supports": ("implicit.support=relaxation",),
    "joint matching": ("implicit.sweeps=9",),
    "not ReLU-aware": ("implicit.relu_aware=false",),
    "no sensitivity weights": ("implicit.sensitivity=false",),
    "open loop": ("implicit.closed_loop=false",),
}

MATCHING = ("implicit.objective=sparsity", "implicit.robustness=null")
ROWS = ("implicit.robustness=null", "implicit.sparsity=null")

ROBUSTNESS: Variants = {
    "path norm, 1 point, 75 %": (),
    "path norm, half a point, 75 %": ("implicit.robustness=0.005",),
    "path norm, 2 points, 75 %": ("implicit.robustness=0.02",),
    "path norm, 1 point, 50 %": ("implicit.sparsity=0.5",),
    "path norm, 1 point, 90 %": ("implicit.sparsity=0.9",),
    "sparsity alone, 75 %": MATCHING,
    "sparsity alone, 90 %": (*MATCHING, "implicit.sparsity=0.9"),
    "row norms, rooted, lambda1 0.5": (*ROWS, "implicit.lambda1=0.5"),
    "row norms, rooted, lambda1 0.1": (*ROWS, "implicit.lambda1=0.1"),
    "full A, kappa 0.99, 75 %": (*MATCHING, "implicit.structure=full"),
    "full A, kappa 0.5, 75 %": (*MATCHING, "implicit.structure=full", "implicit.kappa=0.5"),
    "full A, kappa 0.1, 75 %": (*MATCHING, "implicit.structure=full", "implicit.kappa=0.1"),
    "whole rows, kappa 0.5, 75 %": (
        *MATCHING,
        "implicit.constraint=row",
        "implicit.kappa=0.5",
    ),
}

PGD_AT, CERTIFIED_AT = 0.05, 0.02


def main() -> None:
    """Run every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "table", choices=("accuracy", "convolutions", "robustness"), help="which table"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="where to")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for all variants")
    options = parser.parse_intermixed_args()
    models = "evaluation.baselines=[explicit,implicit]"
    if options.table != "robustness":
        name, variants, line = "fashion-mnist-sparsity.yaml", ACCURACY, accuracy
        if options.table == "convolutions":
            name, variants = "fashion-mnist-lenet.yaml", CONVOLUTIONS
        shared = ["implicit.sparsity=0.9", "implicit.finetune=0", models]
        lines = [f"{'variant':34} {'points':>24} {'mean':>7} {'seconds':>8}"]
    else:
        name, variants, line = "fashion-mnist-robustness.yaml", ROBUSTNESS, robustness
        shared = ["implicit.finetune=0", "evaluation.attacks=[pgd]", models]
        shared += [f"evaluation.eps=[0,{CERTIFIED_AT},{PGD_AT}]"]
        lines = [
            f"{'variant':34} {'points':>7} {'sparsity':>9} {f'PGD at {PGD_AT}':>16} "
            f"{f'certified at {CERTIFIED_AT}':>18} {'radius, intervals':>18} {'tightest':>9}"
        ]
    folders: list[Path] = []
    for variant, overrides in variants.items():
        settings = config.load(CONFIGS / name, [*shared, *options.overrides, *overrides])
        folder = options.out / variant.replace(",", "").replace(" ", "-").replace("%", "percent")
        if folders:
            lend_networks(folders[0], folder, settings)
        folders.append(folder)
        rows = results(run(settings, folder))
        lines.append(f"{variant:34} {line(rows, folder)}")
        print("\n".join(lines), flush=True)


def accuracy(rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Write a variant's line: points of each seed, mean, the slowest seed's seconds."""
    rows = [r for r in rows if r["model"] == "implicit" and r["seed"] != "mean"]
    points = [r["points"] for r in rows]
    written = " / ".join(f"{p:+.2f}" for p in points)
    slowest = max(r["seconds"] for r in rows)
    return f"{written:>24} {sum(points) / len(points):+7.2f} {slowest:8.1f}"


def robustness(rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Write a variant's line: what it costs, and what it is worth beside the explicit network."""
    rows = [r for r in rows if r["model"] == "implicit" and r["seed"] != "mean"]
    table = read.table(folder / "robustness.csv", ("model", "attack", "mean_radius"))

    def of(model: str, attack: str, column: str, eps: float | None = None) -> float:
        own = [r for r in table if (r["model"], r["attack"]) == (model, attack)]
        return mean([r for r in own if eps is None or read.number(r["eps"]) == eps], column)

    def beside(attack: str, eps: float) -> str:
        ours, other = (of(m, attack, "accuracy", eps) for m in ("implicit", "explicit"))
        return f"{100 * ours:.1f} to {100 * other:.1f}"

    # with feedback, intervals are those around the equilibrium
    feedback = any(row["attack"] == "mixed-monotone" for row in table)
    intervals = "mixed-monotone" if feedback else "interval"
    ratios = [
        of("implicit", mine, "mean_radius") / of("explicit", theirs, "mean_radius")
        for mine, theirs in ((intervals, "interval"), ("certified", "certified"))
    ]
    return (
        f"{mean(rows, 'points'):+7.2f} {100 * mean(rows, 'sparsity'):8.1f}% "
        f"{beside('pgd', PGD_AT):>16} {beside('certified', CERTIFIED_AT):>18} "
        f"{ratios[0]:17.2f}x {ratios[1]:8.2f}x"
    )


if __name__ == "__main__":
    main()
