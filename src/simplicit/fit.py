"""implicitize(): a trained network in, a sparse and certified implicit model out."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simplicit.calibration.batches import Batches, batches
from simplicit.calibration.structure import Structure
from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.matching.dense import Matching, Row
from simplicit.matching.dense_elimination import EliminationMatching
from simplicit.matching.layers import LayerwiseMatching
from simplicit.model.implicit import ImplicitModel
from simplicit.recipe import Recipe
from simplicit.refine import robustify
from simplicit.refine.dead_states import without_dead_states
from simplicit.system import progress, threads


@dataclass(frozen=True, eq=False)
class Fit:
    """An implicit model and how it came about.

    Attributes:
        model: The model, in the teacher's dtype.
        rows: One record per row problem: layer, row, status, gap, objective, bound, …
        trace: Relative gaps of the solves against time, one record per stage of a solve.
        seconds: Time of each phase, with that before a stop if a stopped run was taken up.
        levels: The path to a level of robustness: price, loss, path norm; empty without one.
    """

    model: ImplicitModel
    rows: list[Row]
    trace: list[Row]
    seconds: dict[str, float]
    levels: list[Row] = field(default_factory=list)


def implicitize(
    net: nn.Module,
    inputs: Tensor | Iterable[Any],
    *,
    objective: Literal["sparsity", "robustness"] = "sparsity",
    sparsity: float | None = None,
    structure: Literal["auto", "full", "triangular", "layered"] = "auto",
    kappa: float = 0.99,
    preset: str | None = None,
    seed: int = 0,
    **options: Any,
) -> ImplicitModel:
    """Turn a trained network into an implicit model by convex state matching (arXiv 2209.09389).

    Args:
        net: A network of linear maps and elementwise activations that returns logits; it is not
            changed.
        inputs: Calibration inputs without labels: a tensor in the network's own input shape, or an
            iterable of batches.
        objective: `sparsity` or `robustness`.
        sparsity: Budget: the fraction of the network's weights to do without, in [0, 1).
        structure: Which entries of A may be used: `full`, `triangular`, `layered` or `auto`.
        kappa: Bound on ‖A‖∞,ω for `full`.
        preset: `paper` or `acml2025`, reconstructions of the recipes of two papers.
        seed: Seed of whatever is random; the convex solve itself is not.
        **options: Further fields of `Recipe`, and `batch_size`, `workers`, `device`, `checkpoint`
            of `fit`.

    Returns:
        The model.

    Raises:
        InputError: If the network, the inputs or an option cannot be used.
    """
    settings = {name: options.pop(name) for name in list(options) if name in Recipe.__annotations__}
    unknown = set(options) - {"batch_size", "workers", "device", "checkpoint"}
    if unknown:
        accepted = (*Recipe.__annotations__, "batch_size", "workers", "device", "checkpoint")
        raise InputError(f"unknown option {min(unknown)!r}: accepted are {', '.join(accepted)}")
    recipe = Recipe(
        objective=objective, sparsity=sparsity, structure=structure, kappa=kappa, **settings
    ).with_preset(preset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return fit(net, inputs, recipe, **options).model


def fit(
    net: nn.Module,
    inputs: Tensor | Iterable[Any],
    recipe: Recipe,
    *,
    batch_size: int = 1000,
    workers: int | None = None,
    device: torch.device | str | None = None,
    checkpoint: Path | None = None,
) -> Fit:
    """Do what `implicitize` does, and keep the certificates of the rows.

    Args:
        net: The teacher.
        inputs: Calibration inputs.
        recipe: What to solve.
        batch_size: Samples a step of the passes over the data.
        workers: Parallel blocks of rows; all processors when omitted.
        device: Where the row problems are solved; the network's own by default.
        checkpoint: Folder that keeps finished blocks, for a run that is stopped and taken up.

    Returns:
        The model and its records.

    Raises:
        InputError: If the network, the inputs or an option cannot be used.
    """
    clock = _Clock()
    check_device(device or "cpu")
    stream = batches(inputs, batch_size)
    equations = capture(net, stream.example)
    if equations.nonzeros == 0:
        raise InputError("the network has no non-zero weights: at least one is needed")
    if equations.structured:
        return _fit_layers(equations, stream, recipe, workers, checkpoint, clock)
    structure: Structure = "triangular" if recipe.structure == "auto" else recipe.structure
    kind = EliminationMatching if recipe.eliminates else Matching
    matching = kind(equations, stream, recipe, structure, workers, device, checkpoint)
    clock.lap("capture")
    gram = matching.gram(None)
    clock.lap("states")
    with threads.single_threaded():
        matching.plan(gram)
        clock.lap("level")
        for index in range(len(matching.blocks)):
            matching.solve_block(index, gram)
        clock.lap("solve")
        # its products are short: two threads on busy processors would mostly wait for each other
        if recipe.joint and isinstance(matching, EliminationMatching):
            matching.match_outputs()
            clock.lap("sweeps")
    model = matching.model()
    levels: list[Row] = []
    if recipe.robustness is not None:
        with (
            threads.single_threaded(),
            progress.task("finding the level of robustness", total=robustify.LEVELS) as step,
        ):
            found = robustify.robustify(model, *matching.calibration(), recipe.robustness, step)
        model, levels = found[0], [vars(level) for level in found[1]]
        rows = torch.cat([torch.cat([model.A, model.B], 1), torch.cat([model.C, model.D], 1)])
        matching.recount(torch.count_nonzero(rows, dim=1))
        clock.lap("robustness")
    if recipe.joint:
        # only the sweeps spend again what dead states had of the budget
        model = without_dead_states(model)
    seconds = {name: lap + matching.earlier.get(name, 0.0) for name, lap in clock.laps.items()}
    return Fit(model, matching.rows, matching.trace, seconds, levels)


def check_device(device: torch.device | str) -> None:
    """Refuse a device that is not there.

    Args:
        device: Its name.

    Raises:
        InputError: If there is none of that name.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"device {str(device)!r} is not available here: cpu always is") from None


# networks that are not all matrices: only their own connections, A is never written out
@torch.no_grad()
def _fit_layers(
    equations: StateEquations,
    stream: Batches,
    recipe: Recipe,
    workers: int | None,
    checkpoint: Path | None,
    clock: "_Clock",
) -> Fit:
    if recipe.structure not in ("auto", "layered"):
        raise InputError(
            f"structure {recipe.structure!r}: for a network with convolutions, tokens or kept "
            "operations, accepted are layered and auto"
        )
    if recipe.robustness is not None:
        raise InputError(
            "robustness: for a network with convolutions, tokens or kept operations there is no "
            "level to choose; accepted is null"
        )
    if recipe.constraint == "row":
        raise InputError(
            "constraint 'row': for a network with convolutions, tokens or kept operations, "
            "accepted is states"
        )
    workers = min(workers or threads.available(), threads.available())
    matching = LayerwiseMatching(equations, stream, recipe, workers, checkpoint)
    clock.lap("capture")
    with threads.single_threaded():
        matching.plan()
        clock.lap("level")
        matching.solve()
        clock.lap("solve")
    model = ImplicitModel.from_equations(matching.matched, equations.nonzeros)
    seconds = {name: lap + matching.earlier.get(name, 0.0) for name, lap in clock.laps.items()}
    return Fit(model, matching.rows, matching.trace, seconds)


@dataclass
class _Clock:
    last: float = field(default_factory=time.monotonic)
    laps: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self.last = now - self.last, now
