"""Compiled models against their models on random networks of all kinds of layers.

    python benchmarks/agreement.py [--count 10000]

Outputs agree if they differ by at most 1e-5 of their size in float32, 1e-10 in float64; where a
float32 output differs by more, both are held against the model in float64, and the compiled one is
at most four times as far from it. Prints how many networks agree, and the largest difference.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

import simplicit
from simplicit.model.implicit import ImplicitModel

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import random_networks


@torch.no_grad()
def difference(seed: int) -> tuple[float, bool]:
    """Compare on batches of 1 and 11.

    Returns:
        The largest difference, relative to the outputs of the sample; whether it is the rounding of
        the model itself.
    """
    equations = random_networks.equations(seed)
    model = ImplicitModel.from_equations(equations)
    fast = simplicit.compile(model, batch=8, threads=1)
    exact = ImplicitModel.from_equations(
        equations.changed(lambda t: t.double() if t.is_floating_point() else t)
    )
    worst, rounding = 0.0, True
    tolerance = 1e-5 if equations.like.dtype == torch.float32 else 1e-10
    for m in (1, 11):
        u = torch.randn(m, *equations.input_shape, dtype=equations.like.dtype)
        y, wanted = fast(u), model(u)
        size = wanted.abs().amax(1).clamp_min(1e-3)
        error = (y - wanted).abs().amax(1) / size
        if bool((error > tolerance).any()):
            truth = exact(u.double())
            own, other = ((v - truth).abs().amax(1) for v in (wanted, y))
            rounding &= bool((other <= 4 * own + tolerance * size).all())
        worst = max(worst, float(error.max()))
    return worst, worst <= tolerance or rounding


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    begin, worst, near, wrong = time.monotonic(), 0.0, 0, []
    for seed in range(asked.first, asked.first + asked.count):
        error, agrees = difference(seed)
        near += error <= 1e-5
        worst = max(worst, error)
        wrong += [] if agrees else [seed]
    print(
        f"{asked.count - len(wrong)} of {asked.count} agree, {near} of them to 1e-5; the largest "
        f"difference is {worst:.1e}; {time.monotonic() - begin:.0f} s"
    )
    print(f"those that do not: {wrong}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
