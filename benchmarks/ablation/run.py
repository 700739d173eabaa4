"""What each part of the recipe buys: the implicit model without it, on the same explicit networks.

    python benchmarks/ablation/run.py --out ablation implicit.sparsity=0.9

Prints one line per variant: test accuracy minus the explicit network's in points for each seed,
their mean, seconds. Each variant is a run folder; what is there already is not done again.
"""

import argparse
from pathlib import Path

from simplicit import config
from simplicit.compare import lend_networks
from simplicit.findings import results
from simplicit.run import run

CONFIG = Path(__file__).parents[2] / "configs" / "fashion-mnist-sparsity.yaml"

VARIANTS = {
    "default": (),
    "no biases": ("implicit.bias=false",),
    "no skip connections": ("implicit.structure=layered",),
    "inactive samples count fully": ("implicit.relu_aware=false",),
    "no sensitivity weights": ("implicit.sensitivity=false",),
    "open loop": ("implicit.closed_loop=false",),
    "no joint matching": ("implicit.sweeps=0",),
    "no joint matching, open loop": ("implicit.sweeps=0", "implicit.closed_loop=false"),
    "no joint matching, not ReLU-aware": ("implicit.sweeps=0", "implicit.relu_aware=false"),
    "relaxation chooses supports": ("implicit.support=relaxation",),
}


def main() -> None:
    """Run every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="where to")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for all variants")
    options = parser.parse_args()
    shared = ["implicit.sparsity=0.9", "evaluation.baselines=[explicit,implicit]"]
    lines = [f"{'variant':34} {'points':>24} {'mean':>7} {'seconds':>8}"]
    folders: list[Path] = []
    for name, overrides in VARIANTS.items():
        settings = config.load(CONFIG, [*shared, *options.overrides, *overrides])
        folder = options.out / name.replace(",", "").replace(" ", "-")
        if folders:
            lend_networks(folders[0], folder, settings)
        folders.append(folder)
        rows = [r for r in results(run(settings, folder)) if r["model"] == "implicit"]
        points = [r["points"] for r in rows if r["seed"] != "mean"]
        seconds = [r["seconds"] for r in rows if r["seed"] != "mean"]
        written = " / ".join(f"{p:+.2f}" for p in points)
        mean, slowest = sum(points) / len(points), max(seconds)
        lines.append(f"{name:34} {written:>24} {mean:+7.2f} {slowest:8.1f}")
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
