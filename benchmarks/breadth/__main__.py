"""Which networks go in, and do they come out as what they were?

    python benchmarks/breadth            all, each in a process of its own; prints a Markdown table
    python benchmarks/breadth NAME ...   some

Needs torchvision, timm and transformers. Networks are in float64, so that rounding does not hide
an error; each column of errors is the largest difference of an output, relative to its largest
entry: of the equations, of `to_explicit()`, and of the network itself after `load_into` put half of
each weight, the larger half, back into it. It gates nothing.
"""

import argparse
import copy
import json
import multiprocessing
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from networks import NETWORKS
from torch import Tensor, nn

from simplicit.calibration.skipped import skipped
from simplicit.capture.outputs import tensors_of
from simplicit.capture.read import capture
from simplicit.equations.layer_phi import Kept
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel

LIMIT = 300.0
"""Seconds for one network."""


def alive(net: nn.Module, inputs: Any) -> nn.Module:
    """Let signals through random weights: statistics of batch norm, heads that are not zero.

    Args:
        net: The network, changed in place.
        inputs: What it is called with.

    Returns:
        The network in evaluation mode.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for p in net.parameters():
        if p.ndim == 2 and not p.any():
            nn.init.normal_(p, std=0.05)
    net.eval()
    for norm in norms:
        norm.momentum = None
        norm.train()
    if norms:
        with torch.no_grad():
            call(net, inputs)
    return net.eval()


def call(net: Any, inputs: Any) -> list[Tensor]:
    """Call a network as anyone would.

    Args:
        net: The network.
        inputs: A tensor, a tuple, or a table.

    Returns:
        The tensors it returns.
    """
    if isinstance(inputs, dict):
        found = net(**inputs)
    else:
        found = net(*inputs) if isinstance(inputs, tuple) else net(inputs)
    return list(tensors_of(found).values())


def apart(found: list[Tensor], expected: list[Tensor]) -> float:
    """Compare outputs.

    Args:
        found: Of one.
        expected: Of the other.

    Returns:
        The largest difference, relative to the largest entry of its tensor.
    """
    pairs = zip(found, expected, strict=True)
    return max(float((y - z).abs().max() / z.abs().max().clamp_min(1e-30)) for y, z in pairs)


@torch.no_grad()
def one(name: str) -> dict[str, Any]:
    """Try one network.

    Args:
        name: Its name.

    Returns:
        What was found.
    """
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, inputs = NETWORKS[name]()

    def doubled(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    if isinstance(inputs, dict):
        inputs = {key: doubled(x) for key, x in inputs.items()}
    else:
        inputs = tuple(map(doubled, inputs)) if isinstance(inputs, tuple) else doubled(inputs)
    net = alive(net.double(), inputs)
    row: dict[str, Any] = {"name": name, "parameters": sum(p.numel() for p in net.parameters())}
    begin = time.process_time()
    try:
        equations = capture(net, inputs)
    except InputError as error:
        return row | {"refused": str(error)}
    row["seconds"] = time.process_time() - begin
    kept = sum(equations.kept_weights.values())
    row["matched"] = 1 - kept / max(equations.nonzeros, 1)
    row["operations"] = sorted({e.phi.name for e in equations.hidden if isinstance(e.phi, Kept)})
    model, expected = ImplicitModel.from_equations(equations), call(net, inputs)
    row["replayed"] = apart(call(model, inputs), expected)
    tied = {id(layer.weight) for layer in skipped(model.equations, ()).values()}
    for weight in model.learned:
        if id(weight) not in tied:
            weight[weight.abs() < weight.abs().median()] = 0.0
    wanted, own = call(model, inputs), copy.deepcopy(net)
    for key, make in (("explicit", model.to_explicit), ("own", lambda: loaded(model, own))):
        try:
            row[key] = f"{apart(call(make(), inputs), wanted):.0e}"
        except InputError as error:
            row[key] = str(error)
    return row


def loaded(model: ImplicitModel, net: nn.Module) -> nn.Module:
    """Write a model's weights into a network.

    Args:
        model: The model.
        net: Changed in place.

    Returns:
        The network.
    """
    model.load_into(net)
    return net


def _tell(name: str, pipe: Any) -> None:
    try:
        row = one(name)
    except Exception as error:
        row = {"name": name, "refused": f"{type(error).__name__}: {error}"}
    pipe.send(json.dumps(row))


def rows(names: list[str]) -> Iterator[dict[str, Any]]:
    """Try networks, each in a process of its own.

    Args:
        names: Which.

    Yields:
        What was found.
    """
    context = multiprocessing.get_context("fork")
    for name in names:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_tell, args=(name, there))
        process.start()
        there.close()
        try:
            yield json.loads(here.recv()) if here.poll(LIMIT) else {"name": name, "refused": "slow"}
        except EOFError:
            yield {"name": name, "refused": "the process ended"}
        process.kill()
        process.join()


def main() -> None:
    """Try and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="networks; all by default")
    names = parser.parse_args().names or list(NETWORKS)
    print("| network | parameters | matched | replayed | to_explicit | load_into | kept | s |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows(names):
        if "refused" in row:
            print(f"| {row['name']} | refused: {row['refused']} |||||||")
            continue
        print(
            f"| {row['name']} | {row['parameters']:,} | {row['matched']:.1%} | "
            f"{row['replayed']:.0e} | {row['explicit']} | {row['own']} | "
            f"{', '.join(row['operations'])} | {row['seconds']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
