"""Smaller networks side by side: whole channels, n:m, low rank; one-shot and fine-tuned.

    python benchmarks/structured cifar10 --ratio 1.33 1.67 2.1 3
    python benchmarks/structured fashion-64 fashion-300 --ratio 2 4 --methods channels_l1 svd

A ratio is the network's multiply-adds over the result's. All methods see the same calibration
images and no labels, but for the one that says so. A row has the test accuracy at once, with the
statistics of batch normalisation estimated again on these images, and after fine-tuning there: ours
as `implicit.finetune` does it, towards the network's states and outputs, the others towards its
outputs; and the time of torch eager modules over the network's, batches of 64, one thread, median
of turns. Rows are added to `--out` and not measured again. It gates nothing.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from methods import FIXED, METHODS, PATTERN, finetuned
from networks import NETWORKS, Case
from torch import Tensor, nn

from simplicit import ImplicitModel, InputError
from simplicit.explicit.training import accuracy
from simplicit.lab.baselines.tools.size import estimate_again, size
from simplicit.lab.baselines.tools.weights import nonzeros

TURNS = 7
"""Of the network and of what was made of it, one after the other; odd."""

Row = dict[str, Any]


def relative_time(net: nn.Module, made: nn.Module, x: Tensor) -> float:
    """Time two networks in turns.

    Args:
        net: The network.
        made: What was made of it.
        x: A batch.

    Returns:
        The median of the ratios, made over net.
    """
    ratios = []
    with torch.no_grad():
        for turn in range(TURNS + 1):
            seconds = []
            for one in (net, made):
                begin = time.perf_counter()
                one(x)
                seconds.append(time.perf_counter() - begin)
            ratios += [seconds[1] / seconds[0]] * (turn > 0)  # the first one warms
    return statistics.median(ratios)


def row(case: Case, method: str, ratio: float, epochs: int, tested: int) -> Row:
    """Make and measure one network.

    Args:
        case: The network and its data.
        method: One of `METHODS`.
        ratio: Multiply-adds before over after.
        epochs: Of fine-tuning.
        tested: Test images.

    Returns:
        What was measured.
    """
    task, inputs, labels = case.task, case.test_inputs[:tested], case.test_labels[:tested]
    begin = time.perf_counter()
    made = METHODS[method](task, ratio).eval()
    seconds = time.perf_counter() - begin
    plain = made.to_explicit() if isinstance(made, ImplicitModel) else made
    again = copy.deepcopy(plain)
    estimate_again(again, task.calibration)
    start = again if made is plain else made
    tuned = finetuned(start, task.net, task.calibration, epochs)
    operations = [size(task, one, "multiply-adds") for one in (task.net, plain)]
    return {
        "operations": operations[0] / operations[1],
        "weights": nonzeros(task.net) / nonzeros(plain),
        "accuracy": accuracy(plain, inputs, labels, 250),
        "again": accuracy(again, inputs, labels, 250),
        "tuned": accuracy(tuned, inputs, labels, 250),
        "time": relative_time(task.net, plain, case.test_inputs[:64]),
        "seconds": seconds,
    }


def show(rows: list[Row]) -> None:
    """Print rows as a table.

    Args:
        rows: Of one network, with `ratio`, `method` and what `row` measures.
    """
    names = ("at once", "BN again", "fine-tuned", "time", "s")
    print("\n| ÷ | method | ÷ multiply-adds | ÷ weights |", " | ".join(names), "|")
    print("|---|---|" + "---:|" * 7)
    for r in rows:
        figures = " | ".join(f"{100 * r[key]:.2f}" for key in ("accuracy", "again", "tuned"))
        print(
            f"| {r['ratio']:g} | {r['method']} | {r['operations']:.2f} | {r['weights']:.2f} | "
            f"{figures} | {r['time']:.2f} | {r['seconds']:.0f} |"
        )


def main() -> None:
    """Measure and print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--ratio", nargs="+", type=float, default=[1.33, 1.67, 2.1, 3.0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=5, help="of fine-tuning")
    parser.add_argument("--test", type=int, default=10_000, help="test images, the first ones")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/structured"), help="rows, networks")
    asked = parser.parse_args()
    for name in set(asked.networks) - set(NETWORKS):  # argparse has no choices of none or several
        parser.error(f"network {name!r}: accepted are {', '.join(NETWORKS)}")
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / "rows.jsonl"
    for name in asked.networks:
        case = NETWORKS[name](asked.data, asked.out)
        tested = case.test_inputs[: asked.test], case.test_labels[: asked.test]
        print(f"\n{name}: {100 * accuracy(case.task.net, *tested, 250):.2f} %", flush=True)
        free = [m for m in asked.methods if m not in FIXED]
        wanted = [(PATTERN, m) for m in asked.methods if m in FIXED]
        rows = []
        for ratio, method in [(r, m) for r in asked.ratio for m in free] + wanted:
            key = {"network": name, "method": method, "ratio": ratio}
            key |= {"epochs": asked.epochs, "test": len(tested[0])}
            lines = file.read_text("utf-8").splitlines() if file.exists() else []
            known = [r for r in map(json.loads, lines) if key.items() <= r.items()]
            if not known:
                try:
                    known = [key | row(case, method, ratio, asked.epochs, asked.test)]
                except InputError as error:
                    print(f"{method}: {error}")
                    continue
                with file.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(known[0]) + "\n")
            rows.append(known[0])
        show(rows)


if __name__ == "__main__":
    main()
