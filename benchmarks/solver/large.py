"""Solve K = 2,000 rows of N = 20,000 features and print time and peak memory (24 GB suffice).

The moments are those of 2,000 samples, so that G is dense and of rank 2,000; targets have about 100
true weights and 30 % noise, and at the level below supports have about 200 non-zeros. --loss root
and --ball, in the norm of the true weights, time the other kinds of rows.
"""

import argparse
import resource
import time

import torch

from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.solvers import solve
from simplicit.system import threads

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--features", type=int, default=20_000)
parser.add_argument("--rows", type=int, default=2_000)
parser.add_argument("--level", type=float, default=0.05)
parser.add_argument("--loss", choices=["squared", "root"], default="squared")
parser.add_argument("--ball", type=float)
parser.add_argument("--workers", type=int, default=threads.available())
parser.add_argument("--device", default="cpu")
options = parser.parse_args()
torch.set_num_threads(1 if options.device == "cpu" else threads.available())
N, K, m = options.features, options.rows, 2_000

random = torch.Generator().manual_seed(0)
V = torch.randn(m, N, generator=random)
W = torch.randn(K, N, generator=random) * (torch.rand(K, N, generator=random) < 100 / N)
T = V @ W.T
T += 0.3 * T.std() * torch.randn(m, K, generator=random)
begin, spent = time.perf_counter(), time.process_time()
gram = Gram(N, K)
for i in range(0, m, 1000):
    gram.update(V[i : i + 1000], T[i : i + 1000])
ball = options.ball and Ball(slice(None), options.ball * W.abs().sum(1).double())
del V, T, W
print(
    f"Gram {time.perf_counter() - begin:.0f} s, {time.process_time() - spent:.0f} s of processors",
    flush=True,
)
top = gram.R.abs().amax(1) / (gram.t2.sqrt() if options.loss == "root" else 1)
problem = RowProblem(gram, Penalty(l1=options.level * top), ball, options.loss)
begin, spent, shown = time.perf_counter(), time.process_time(), 0


def report(progress) -> None:
    global shown
    if progress.solved >= shown + K // 20:
        shown = progress.solved
        print(f"{progress.seconds:.0f} s: {shown} of {progress.total}", flush=True)


solution = solve(problem, device=options.device, workers=options.workers, callback=report)
print(
    f"N {N}, K {K} on {options.device}: {time.perf_counter() - begin:.1f} s, "
    f"{time.process_time() - spent:.1f} s of processors, {int(solution.solved.sum())} rows solved, "
    f"non-zeros a row {float(solution.nonzeros.double().mean()):.0f}, worst relative gap "
    f"{float((solution.gap / problem.unit).max()):.1e}, peak memory "
    f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB"
)
