"""Time the solver beside others: one process, one thread, one float64 judge.

    python benchmarks/solver --problems a,b,c,d --zeros 0.7,0.9,0.97 --kinds lasso,ball,l0+l2,root

A method's time is the median at its loosest tolerance whose answer is judged good enough: a
relative gap of 1e-6 for ours, --theirs for the others; or at its tightest, where none is. Their
tolerances are close to each other, so that none is timed at a much better answer than it has to be.
Times are the processor's: those of the wall on an idle machine, and less disturbed on another.
"""

import os

for _name in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
    os.environ[f"{_name}_NUM_THREADS"] = "1"

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import threadpoolctl
import torch
from methods import LASSO, OTHERS, STEPS
from problems import first_layer, level_for, network, synthetic, triangular

from simplicit.convex.gram import Gram

OURS = 1e-6


def timed(function) -> tuple[float, object]:
    begin = time.process_time()
    value = function()
    return time.process_time() - begin, value


def measure(blocks, kind: str, level: float, method, most: float, repeats: int):
    """Yield (tolerance, seconds a row, worst relative gap, rows) down the method's tolerances.

    Each is timed once; the last, whose answer is good enough, is the median of the repeats.
    """
    solver, limit, tol, factor = method
    limit = limit or 10**9

    def once(tol: float) -> tuple[float, float, int]:
        # built anew, so that no factorisation is left from the last
        problems = [rows.problem(kind, level) for rows in blocks]
        seconds, gaps = 0.0, []
        for rows, problem in zip(blocks, problems, strict=True):
            k = min(limit, len(problem.gram.R))
            spent, W = timed(solver(rows, problem, tol, k))
            seconds += spent
            some = problem.select(slice(0, k))
            gaps += (some.gap(torch.as_tensor(W)) / some.unit).tolist()
        worst = float(torch.tensor(gaps).max())  # NaN stays NaN
        return seconds / len(gaps), worst, len(gaps)

    once(tol)  # the first compiles and warms the caches
    for _ in range(STEPS if factor < 1 else 2):
        seconds, worst, count = once(tol)
        if worst <= most:
            seconds = statistics.median(once(tol)[0] for _ in range(repeats))
        yield tol, seconds, worst, count
        if worst <= most:
            break
        tol *= factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", default="a,b,c,d")
    parser.add_argument("--zeros", default="0.7,0.9,0.97")
    parser.add_argument("--kinds", default="lasso")
    parser.add_argument("--methods", default="")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--theirs", type=float, default=1e-4, help="gap asked of the others")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("benchmark-solver"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pools = {p["internal_api"]: p["num_threads"] for p in threadpoolctl.threadpool_info()}
    print(f"threads: torch {torch.get_num_threads()}, {pools}", flush=True)
    wanted = options.problems.split(",")
    net, inputs = network(options.data) if {"a", "b"} & set(wanted) else (None, None)
    make = {
        "a": lambda: first_layer(net, inputs),
        "b": lambda: triangular(net, inputs),
        "c": lambda: synthetic(2000, 4000, 64, 1e2),
        "c10000": lambda: synthetic(10_000, 12_000, 64, 1e2),
        "d": lambda: synthetic(800, 4000, 64, 1e6),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    print("| problem | penalty | zeros | method | rows | ms a row | worst gap | / ours |")
    print("|---|---|---|---|---|---|---|---|")
    for name in wanted:
        blocks = make[name]()
        gram = statistics.median(
            sum(timed(partial(Gram.from_data, rows.V, rows.T))[0] for rows in blocks)
            for _ in range(options.repeats)
        )
        total = sum(rows.T.shape[1] for rows in blocks)
        print(f"| {name} | | | the Gram itself, once | {total} | {1e3 * gram:.0f} ms | | |")
        for kind in options.kinds.split(","):
            for zeros in map(float, options.zeros.split(",")):
                level = level_for(blocks, kind, zeros)
                base = None
                for label, method in (LASSO if kind == "lasso" else OTHERS).items():
                    if options.methods and label not in options.methods.split(","):
                        continue
                    most = OURS if label == "simplicit" else options.theirs
                    try:
                        points = list(measure(blocks, kind, level, method, most, options.repeats))
                    except Exception as error:  # another package's failure is a row of the table
                        print(f"| {name} | {kind} | {zeros} | {label} | | {error!r:.60} | | |")
                        continue
                    _, seconds, gap, count = points[-1]
                    base = seconds if label == "simplicit" else base
                    ratio = f"{seconds / base:.1f}" if base else ""
                    print(
                        f"| {name} | {kind} | {zeros} | {label} | {count} | {1e3 * seconds:.2f} "
                        f"| {gap:.1e} | {ratio} |",
                        flush=True,
                    )
                    results.append(
                        {
                            "problem": name,
                            "penalty": kind,
                            "zeros": zeros,
                            "method": label,
                            "rows": count,
                            "points": [[tol, s, g] for tol, s, g, _ in points],
                        }
                    )
                    (options.out / "results.json").write_text(json.dumps(results, indent=1))
                    draw(results, options.out / "gap-against-time.png")


def draw(results: list[dict], path: Path) -> None:
    """One panel per problem, penalty and share of zeros: worst gap against time a row."""
    panels = sorted({(r["problem"], r["penalty"], r["zeros"]) for r in results})
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.6), sharey=True, squeeze=False, layout="tight"
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        for result in results:
            if (result["problem"], result["penalty"], result["zeros"]) == panel:
                seconds, gaps = zip(
                    *[(s, max(g, 1e-16)) for _, s, g in result["points"]], strict=True
                )
                axis.loglog(seconds, gaps, "o-", label=result["method"])
        axis.set(title="{}, {}, {:.0%} zeros".format(*panel), xlabel="seconds a row")
    axes[0, 0].set_ylabel("worst relative gap")
    axes[0, -1].legend(fontsize=7, bbox_to_anchor=(1, 1), loc="upper left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
