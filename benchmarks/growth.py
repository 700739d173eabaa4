"""How the time of a whole call grows with features, rows, samples and layers.

    python benchmarks/growth.py --out runs/growth.png

One of the four grows, the others stay as they are: 512 features, 64 rows, 2,000 samples, one hidden
layer, at 80 %, without sweeps on the outputs. Prints seconds by the clock, the less of two, and
the exponent between the two largest sizes; draws them on logarithmic axes. It gates nothing.
"""

import argparse
import time
from math import log
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

from simplicit.fit import fit
from simplicit.recipe import Recipe
from simplicit.system.allocator import keep_freed

SIZES = {
    "features": (128, 256, 512, 1024, 2048),
    "rows": (32, 64, 128, 256, 512),
    "samples": (1000, 2000, 4000, 8000, 16000),
    "layers": (1, 2, 4, 8, 16),
}
USUAL = {"features": 512, "rows": 64, "samples": 2000, "layers": 1}
INSIDE = 64
"""Units of each hidden layer but the first, so that layers are alike."""


def seconds(features: int, rows: int, samples: int, layers: int) -> float:
    """Time a call on a network of random weights.

    Args:
        features: Inputs of the network.
        rows: Units of its first hidden layer.
        samples: Calibration inputs.
        layers: Hidden layers.

    Returns:
        Seconds.
    """
    torch.manual_seed(0)
    widths = [features, rows, *[INSIDE] * (layers - 1)]
    modules: list[nn.Module] = []
    for wide, narrow in zip(widths, widths[1:], strict=False):
        modules += [nn.Linear(wide, narrow), nn.ReLU()]
    net = nn.Sequential(*modules, nn.Linear(widths[-1], 10))
    u = torch.randn(samples, features)
    begin = time.monotonic()
    fit(net, u, Recipe(sparsity=0.8, structure="layered", sweeps=0))
    return time.monotonic() - begin


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("growth.png"), help="the figure")
    out = parser.parse_args().out
    keep_freed()
    seconds(**USUAL)  # what the first call loads
    figure, axes = plt.subplots(1, len(SIZES), figsize=(12, 3), sharey=True, layout="constrained")
    for axis, (name, sizes) in zip(axes, SIZES.items(), strict=True):
        found = [min(seconds(**(USUAL | {name: size})) for _ in range(2)) for size in sizes]
        exponent = log(found[-1] / found[-2]) / log(sizes[-1] / sizes[-2])
        each = ", ".join(f"{size:,}: {took:.2f} s" for size, took in zip(sizes, found, strict=True))
        print(f"{name}: {each}; exponent at the end {exponent:.2f}", flush=True)
        axis.loglog(sizes, found, "o-", color="black")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.set_title(f"{name}, exponent {exponent:.1f}")
    axes[0].set_ylabel("seconds")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
