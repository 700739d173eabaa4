"""How many features a gap-safe sphere would screen during first-order steps: the case against it.

    .venv-bench/bin/python benchmarks/solver/screening.py

With θ = s r the dual point of the gap, |θ'v_j| + ‖v_j‖ √(2 gap) below the penalty's slope proves
that a weight is 0 (Ndiaye, Fercoq, Gramfort & Salmon 2017). Rows share their products, so what
counts is the features left to any of them. Coordinate descent shares nothing, and is left out.
"""

import argparse
import time

import torch
from problems import synthetic

from simplicit.solvers import Settings, solve

FIRST_ORDER = Settings(descent=0.0)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--features", type=int, default=2000)
parser.add_argument("--levels", type=float, nargs="+", default=[0.03, 0.1, 0.3])
parser.add_argument("--steps", type=int, nargs="+", default=[0, 8, 16, 32, 64])
options = parser.parse_args()
torch.set_num_threads(1)
(rows,) = synthetic(options.features, 2 * options.features, 64, 1e2)

print("| level | steps | median gap | left to a row | left to any of 64 | non-zeros a row | ms |")
print("|---|---|---|---|---|---|---|")
for level in options.levels:
    problem = rows.problem("lasso", level)
    length, slope = problem.gram.G.diagonal().sqrt(), problem.penalty.l1[:, None]
    for steps in options.steps:
        begin = time.process_time()
        solution = solve(problem, tol=1e-6, max_iterations=steps, settings=FIRST_ORDER)
        spent = time.process_time() - begin
        c = problem.gradient_moments(solution.W)
        c = c * (slope / c.abs()).amin(1, keepdim=True).clamp_max(1.0)
        left = c.abs() + length * (2 * solution.gap).sqrt()[:, None] >= slope
        gap = float((solution.gap / problem.unit).median())
        print(
            f"| {level} | {steps} | {gap:.0e} | {float(left.double().mean()):.1%} "
            f"| {float(left.any(0).double().mean()):.1%} "
            f"| {float(solution.nonzeros.double().mean()):.0f} | {1e3 * spent:.0f} |",
            flush=True,
        )
