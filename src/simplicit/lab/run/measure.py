"""What a run measures of a model beside its accuracy: attacks, equilibria, sizes."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simplicit.data import datasets as data
from simplicit.errors import InputError
from simplicit.lab import baselines
from simplicit.lab.config.sections import Evaluation
from simplicit.lab.evaluate import robustness
from simplicit.model.implicit import ImplicitModel
from simplicit.system import progress

Row = dict[str, Any]

CURVE_STEPS = 60
"""Most steps of the equilibrium's residual curve."""

STATES = 1 << 24
"""Most states of test images side by side: 64 MB a copy."""


def attacks(
    name: str,
    net: nn.Module,
    dataset: data.Dataset,
    wanted: Evaluation,
    *,
    source: nn.Module,
    seed: int,
) -> tuple[list[Row], dict[str, Tensor]]:
    """Attack and certify a model on some of the test samples.

    Args:
        name: What it is called.
        net: The model, or a network.
        dataset: The data.
        wanted: How many samples, which radii and attacks.
        source: The network whose gradients attack by transfer.
        seed: Of everything random, the choice of the samples too.

    Returns:
        The rows of `robustness.csv`, and what figures show of this model, by names that begin with
        its own.
    """
    u, y = dataset.test_inputs, dataset.test_labels
    chosen = data.sample(len(y), min(1.0, wanted.samples / len(y)), seed)
    u, y = u[chosen], y[chosen]
    with progress.task(f"attacking {name}", total=1.0) as step:
        rows = robustness.evaluate(
            net, u, y, wanted.eps, wanted.attacks, source=source, seed=seed, progress=step
        )
    shown = robustness.shown(net, u, y, wanted.eps, seed=seed)
    return [{"model": name, **row} for row in rows], {f"{name}/{k}": v for k, v in shown.items()}


def equilibria(model: ImplicitModel, inputs: Float[Tensor, "m *shape"]) -> Row:
    """Look at the equilibria of all test samples.

    Args:
        model: The model.
        inputs: Test samples.

    Returns:
        The part that converged, the largest residual, the most steps.
    """
    found = []
    with (
        torch.no_grad(),
        progress.task("equilibria (test samples)", total=float(len(inputs))) as step,
    ):
        for batch in _batches(model, inputs):
            e = model.equilibrium(batch)
            # without the states: those of all test images together would fill the memory
            found.append((e.converged, e.residual, e.steps))
            step(float(len(batch)))
    converged, residual, steps = (torch.cat(parts) for parts in zip(*found, strict=True))
    return {
        "converged": float(converged.double().mean()),
        "max_residual": float(residual.max()),
        "max_steps": int(steps.max()),
    }


def curve(model: ImplicitModel, inputs: Float[Tensor, "m *shape"]) -> list[Row]:
    """Follow the residual of Picard's iteration on the first test samples.

    Where A is never written out there is one step, the pass through the layers.

    Args:
        model: The model.
        inputs: Test samples.

    Returns:
        The rows of `convergence.csv`: residual against step.
    """
    u = _batches(model, inputs)[0]
    method = "exact" if model.equations.structured else "picard"
    with torch.no_grad():
        found = model.equilibrium(u, method=method, max_steps=CURVE_STEPS, history=True)
    residuals = found.residual[None] if found.history is None else found.history
    history = _carried_forward(residuals.cpu().double())
    return [
        {
            "model": "implicit",
            "step": step + 1,
            "residual_median": float(residuals.median()),
            "residual_max": float(residuals.max()),
        }
        for step, residuals in enumerate(history)
    ]


def _batches(model: ImplicitModel, inputs: Tensor) -> tuple[Tensor, ...]:
    return inputs.split(max(1, min(2000, STATES // model.n)))


# gives samples that have converged their last residual at the later steps
def _carried_forward(history: Float[Tensor, "k m"]) -> Float[Tensor, "k m"]:
    filled = [history[0]]
    for residuals in history[1:]:
        filled.append(torch.where(residuals.isnan(), filled[-1], residuals))
    return torch.stack(filled)


def size(net: nn.Module, nonzeros: int, before: int) -> Row:
    """Say how large a network is.

    Args:
        net: The network.
        nonzeros: Its non-zero weights.
        before: Those of the network it was made from.

    Returns:
        Its non-zero weights, its weights, its sparsity.

    Raises:
        InputError: If there were none before.
    """
    if before == 0:
        raise InputError("the network has no non-zero weights: at least one is needed")
    return {
        "nonzeros": nonzeros,
        "parameters": sum(p.numel() for p in net.parameters() if p.ndim > 1),
        "sparsity": 1 - nonzeros / before,
    }


def l0_gap(rows: Sequence[Row]) -> float:
    """Say how far the supports that elimination chose can be from the best ones.

    Args:
        rows: Records of the row problems, each with the dual bound of its l0 problem.

    Returns:
        (F − D) / F, objectives F and bounds D summed over the rows; 0 if nothing is lost.
    """
    objective, bound = (sum(row[name] for row in rows) for name in ("objective", "bound"))
    return (objective - bound) / objective if objective > 0 else 0.0


def by_layer(rows: Sequence[Row], net: nn.Module) -> dict[str, int]:
    """Add up the non-zero weights of an implicit model, layer by layer.

    Args:
        rows: The records of its rows, which call the last layer `output`.
        net: The network it was made from.

    Returns:
        Non-zeros by the layer's name in the network.
    """
    found: dict[str, int] = {}
    for row in rows:
        found[row["layer"]] = found.get(row["layer"], 0) + row["nonzeros"]
    others = [name for name in baselines.by_name(net) if name not in found]
    last = others[0] if len(others) == 1 else "output"
    return {last if layer == "output" else layer: n for layer, n in found.items()}
