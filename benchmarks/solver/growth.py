"""How the solver's time grows with features, rows and the support: a log-log plot and exponents.

.venv-bench/bin/python benchmarks/solver/growth.py
"""

import os

for _name in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_name}_NUM_THREADS"] = "1"

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from problems import Rows, synthetic

from simplicit.solvers import solve

TOL = 1e-6


def measure(rows: Rows, level: float, repeats: int) -> tuple[float, float]:
    """Seconds of processor time of a solve, and the non-zeros of a row."""
    times, weights = [], 0.0
    for _ in range(repeats):
        problem = rows.problem("lasso", level)
        begin = time.process_time()
        solution = solve(problem, tol=TOL)
        times.append(time.process_time() - begin)
        assert bool(solution.solved.all())
        weights = float(solution.nonzeros.double().mean())
    return statistics.median(times), weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, nargs="+", default=[250, 500, 1000, 2000, 4000])
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--levels", type=float, nargs="+", default=[0.1, 0.03, 0.01, 0.003, 0.001])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmark-solver"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    wide = synthetic(1000, 2000, 64, 1e2)[0]
    many = synthetic(500, 2000, max(options.rows), 1e2)[0]
    series = {
        "features N (64 rows)": [
            (N, synthetic(N, 2 * N, 64, 1e2)[0], 0.1) for N in options.features
        ],
        "rows K (500 features)": [(K, replace(many, T=many.T[:, :K]), 0.1) for K in options.rows],
        "non-zeros a row (1000 features, 64 rows)": [(0, wide, x) for x in options.levels],
    }
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="tight")
    print("| against | sizes | seconds | exponent |\n|---|---|---|---|")
    for axis, (name, points) in zip(axes, series.items(), strict=True):
        sizes, seconds = [], []
        for size, rows, level in points:
            spent, weights = measure(rows, level, options.repeats)
            sizes.append(size or weights)
            seconds.append(spent)
        slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
        shown = [" ".join(f"{x:.3g}" for x in values) for values in (sizes, seconds)]
        print(f"| {name} | {shown[0]} | {shown[1]} | {slope:.2f} |", flush=True)
        axis.loglog(sizes, seconds, "o-", label=f"exponent {slope:.2f}")
        axis.set(xlabel=name)
        axis.set_xticks(sizes, [f"{x:.0f}" for x in sizes])
        axis.set_xticks([], minor=True)
        axis.legend()
    axes[0].set_ylabel("seconds, one thread")
    figure.savefig(options.out / "growth.png", dpi=120)


if __name__ == "__main__":
    main()
