"""Networks as people bring them: what they are worth before and after, beside what is usual.

    python benchmarks/brought --sparsity 0.5 0.7 0.9 [series shapes halves gpt2 bert]

Each network is trained here in a minute or two, made sparse without labels and without training,
and, where it can be, written back into its own class. `gpt2` and `bert` need transformers; `halves`
needs Fashion-MNIST. It gates nothing.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable
from typing import Any

import halves
import language
import series
import torch
from baselines import magnitude, wanda
from rich.console import Console
from rich.table import Table
from torch import nn

import shapes
import simplicit

NETWORKS: dict[str, tuple[str, Callable[[], tuple[nn.Module, Any, Any]]]] = {
    "series": ("LSTM, series: R²", series.trained),
    "shapes": ("U-Net, shapes: IoU", shapes.trained),
    "halves": ("LeNet, bfloat16: accuracy", halves.trained),
    "gpt2": ("GPT-2, characters: loss", language.gpt2),
    "bert": ("BERT, masked characters: loss", language.bert),
}


def row(
    title: str, make: Callable[[], tuple[nn.Module, Any, Any]], sparsities: list[float]
) -> list[list[str]]:
    """Measure one network.

    Args:
        title: What it is.
        make: Trains it.
        sparsities: Fractions of its weights to do without.

    Returns:
        A row for each sparsity.
    """
    net, inputs, worth = make()

    def call(some: nn.Module) -> Any:
        return some(**inputs) if isinstance(inputs, dict) else some(inputs)

    before, rows = worth(net), []
    for sparsity in sparsities:
        begin = time.monotonic()
        model = simplicit.implicitize(net, inputs, sparsity=sparsity)
        seconds = time.monotonic() - begin
        own = copy.deepcopy(net)
        try:
            model.load_into(own)
            back = f"{worth(own):.4f}"
        except simplicit.InputError as error:
            back = str(error)
        others = [f"{worth(method(net, sparsity, call)):.4f}" for method in (magnitude, wanda)]
        weights = f"{model.reference_nonzeros:,}"
        found = [f"{before:.4f}", f"{worth(model):.4f}", back, *others, f"{seconds:.0f}"]
        rows.append([title, weights, f"{sparsity:.0%}", *found])
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.5, 0.7, 0.9])
    asked = parser.parse_args()
    for name in set(asked.networks) - set(NETWORKS):  # argparse has no choices of none or several
        parser.error(f"network {name!r}: accepted are {', '.join(NETWORKS)}")
    torch.set_num_threads(os.cpu_count() or 1)
    names = (
        "network",
        "weights",
        "sparsity",
        "as it was",
        "simplicit",
        "in its class",
        "magnitude",
    )
    table = Table(*names, "Wanda", "s")
    for name in asked.networks:
        for found in row(*NETWORKS[name], asked.sparsity):
            table.add_row(*found)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
