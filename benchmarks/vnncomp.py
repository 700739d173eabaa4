"""The verifier on a benchmark folder of VNN-COMP: proved, falsified, open, and seconds.

    git clone https://github.com/ChristopherBrix/vnncomp2022_benchmarks
    gunzip -r vnncomp2022_benchmarks/benchmarks/mnist_fc
    python benchmarks/vnncomp.py vnncomp2022_benchmarks/benchmarks/mnist_fc

The folder holds `instances.csv`, perceptrons as ONNX, and properties as vnnlib: a box of inputs,
and the class whose output stays the largest. `--published` takes result files of other verifiers,
prints what they decided of the same instances, and names those that contradict a proof. Every
counterexample is checked. The last columns are of the first step by itself, a yes or a no by
backward substitution (`proved`): its proofs, and the seconds of processor that it takes. It gates
nothing.
"""

import argparse
import csv
import re
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import get_args

import onnx
import torch
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from simplicit.bounds.branches.search import Status, decide
from simplicit.bounds.certify import as_model, proved
from simplicit.bounds.exact import equations_of
from simplicit.bounds.intervals import Box
from simplicit.bounds.layer_boxes import prepared

STATUSES = get_args(Status)


def network(path: Path) -> nn.Sequential:
    """Read a perceptron.

    Args:
        path: The ONNX file.

    Returns:
        The network, float64.

    Raises:
        SystemExit: If it has other operations.
    """
    graph = onnx.load(path).graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    layers: list[nn.Module] = []
    for node in graph.node:
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        match node.op_type:
            case "Flatten":
                layers.append(nn.Flatten())
            case "Relu":
                layers.append(nn.ReLU())
            case "Gemm" if options.get("transB") == 1:
                weight, bias = (torch.tensor(arrays[name]) for name in node.input[1:])
                linear = nn.Linear(weight.shape[1], weight.shape[0])
                linear.load_state_dict({"weight": weight, "bias": bias})
                layers.append(linear)
            case other:
                raise SystemExit(f"{path}: operation {other}: accepted are Flatten, Gemm and Relu")
    return nn.Sequential(*layers).double().eval()


def asked(path: Path) -> tuple[Box, int]:
    """Read a property.

    Args:
        path: The vnnlib file.

    Returns:
        The box of inputs, and the class that should stay the largest.

    Raises:
        SystemExit: If the property is of another form.
    """
    text = path.read_text()
    number = r"([-+.\deE]+)"
    ends = {}
    for sign in ("<=", ">="):
        pairs = re.findall(rf"\(assert \({sign} X_(\d+) {number}\)\)", text)
        ends[sign] = torch.tensor([float(v) for _, v in pairs], dtype=torch.float64)[None]
    wanted = set(re.findall(r"\(>= Y_\d+ Y_(\d+)\)", text))
    if len(wanted) != 1 or ends["<="].shape != ends[">="].shape:
        raise SystemExit(f"{path}: accepted are a box, and outputs at least that of one class")
    return Box(ends[">="], ends["<="]), int(wanted.pop())


def published(files: list[Path]) -> dict[str, dict[tuple[str, str], str]]:
    """Read what other verifiers decided.

    Args:
        files: Their result files.

    Returns:
        By verifier, network and property: sat, unsat, or something else.
    """
    found = {}
    for file in files:
        with file.open() as lines:
            rows = [row for row in csv.reader(lines) if len(row) > 4]
        found[file.stem] = {(Path(r[1]).stem, Path(r[2]).stem): r[4] for r in rows}
    return found


def violated(predict: nn.Module, box: Box, label: int, point: Tensor) -> bool:
    """Check a counterexample.

    Args:
        predict: The network.
        box: Of the inputs.
        label: The class.
        point: The input.

    Returns:
        Whether it is in the box, and another output is as large as that of the class.
    """
    inside = bool(((point >= box.low[0]) & (point <= box.high[0])).all())
    with torch.no_grad():
        y = predict(point[None])[0]
    others = torch.cat([y[:label], y[label + 1 :]])
    return inside and bool(others.max() >= y[label])


def first_step(model: nn.Module, box: Box, label: int) -> tuple[bool, float]:
    """Decide by backward substitution alone.

    Args:
        model: The network, captured.
        box: A ball around an input, cut off at 0 and 1.
        label: The class.

    Returns:
        Whether that is a proof, and the seconds of processor that it took.
    """
    eps = float((box.high - box.low).max()) / 2
    x = torch.where(box.low > 0, box.low + eps, box.high - eps).clamp(0, 1)
    begin = time.process_time()
    found = proved(model, x, torch.tensor([label]), eps, (0.0, 1.0), methods=["linear"])
    return bool(found), time.process_time() - begin


def main() -> None:
    """Decide every instance and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=15.0, help="for an instance")
    parser.add_argument("--only", default="", help="networks whose name holds this")
    parser.add_argument("--published", type=Path, nargs="*", default=[], metavar="CSV")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with (options.folder / "instances.csv").open() as lines:
        instances = [row[:2] for row in csv.reader(lines) if row]
    instances = [row for row in instances if options.only in row[0]]
    others = published(options.published)
    counts: dict[str, Counter] = {}
    spent: dict[tuple[str, str], list[float]] = {}
    wrong, firsts = [], {}
    for name in dict.fromkeys(row[0] for row in instances):
        net = network(options.folder / name)
        for file in (row[1] for row in instances if row[0] == name):
            box, label = asked(options.folder / file)
            model = as_model(net, box.centre)
            layers = prepared(equations_of(model))
            firsts.setdefault(Path(name).stem, []).append(first_step(model, box, label))
            found = decide(layers, model.outputs, box, label, seconds=options.seconds, nodes=10**6)
            seconds, key = found.seconds, (Path(name).stem, Path(file).stem)
            counts.setdefault(key[0], Counter())[found.status] += 1
            spent.setdefault((key[0], found.status), []).append(seconds)
            if found.input is not None and not violated(net, box, label, found.input):
                wrong.append(f"{key}: no counterexample")
            said = {who: every.get(key, "") for who, every in others.items()}
            if found.status == "proved":
                wrong += [f"{key}: {who} says sat" for who, s in said.items() if s == "sat"]
            print(
                f"{key[0]} {key[1]}: {found.status}, {seconds:.1f} s, {found.nodes} branches",
                flush=True,
            )
    table = Table("network", *STATUSES, "s a proof", "s an instance", "first step: proved", "s")
    for name, count in counts.items():
        proofs = spent.get((name, "proved"), [0.0])
        every = [s for (n, _), some in spent.items() if n == name for s in some]
        means = (f"{sum(some) / len(some):.2f}" for some in (proofs, every))
        first = sum(done for done, _ in firsts[name])
        seconds = statistics.median(some for _, some in firsts[name])
        own = *means, str(first), f"{seconds:.3f}"
        table.add_row(name, *(str(count[s]) for s in STATUSES), *own)
    total = sum(counts.values(), Counter())
    table.add_row("all", *(str(total[s]) for s in STATUSES), "", "")
    console = Console(width=100)
    console.print(table)
    for who, every in others.items():
        mine = Counter(every.get((Path(a).stem, Path(b).stem), "") for a, b in instances)
        print(f"{who}: proved {mine['unsat']}, counterexamples {mine['sat']}")
    print("contradictions:", "; ".join(wrong) or "none")


if __name__ == "__main__":
    main()
