"""implicitize(): a trained network in, a sparse and certified implicit model out."""

import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from simplicit.calibration.batches import Batches, batches
from simplicit.calibration.structure import Structure
from simplicit.capture.inputs import unwrapped
from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.matching.expected.before import tell
from simplicit.matching.expected.estimate import LEVELS
from simplicit.matching.layers import Matching
from simplicit.matching.records import Row
from simplicit.matching.sweeping import samples, sweep
from simplicit.model.dead_states import folded
from simplicit.model.implicit import ImplicitModel
from simplicit.recipe import Recipe
from simplicit.refine import robustify
from simplicit.refine.dead_states import without_dead_states
from simplicit.system import lock, progress, threads
from simplicit.system.deadline import Deadline
from simplicit.workers.executors import Asked, count, opened
from simplicit.workers.workers import Workers

ONE_POINT, HALF = 0.01, 0.5
"""Level of robustness, and sparsity, where objective robustness is asked for and nothing else: one
point of accuracy, and a budget that costs next to nothing."""


MACHINE = ("batch_size", "workers", "device", "checkpoint", "time_limit", "executor")
"""Options of `fit` that say how it is done, and not what is solved."""


@dataclass(frozen=True, eq=False)
class Fit:
    """An implicit model and how it came about.

    Attributes:
        model: The model, in the teacher's dtype and on its device.
        rows: One record per row, those of skipped layers included: layer, row, status, gap, …
        trace: Relative gaps of the solves against time, one record per stage of a solve.
        seconds: Time of each phase, with that before a stop if a stopped run was taken up.
        levels: The path to a level of robustness: price, loss, path norm; empty without one.
        budgets: How many weights each layer had after each stage: stage, layer, weights.
        units: With pattern `channels`, channels and multiply-adds of each layer; empty without.
    """

    model: ImplicitModel
    rows: list[Row]
    trace: list[Row]
    seconds: dict[str, float]
    levels: list[Row] = field(default_factory=list)
    budgets: list[Row] = field(default_factory=list)
    units: list[Row] = field(default_factory=list)


def implicitize(
    net: nn.Module | ExportedProgram,
    inputs: Tensor | Iterable[Any],
    *,
    objective: Literal["sparsity", "robustness"] = "sparsity",
    sparsity: float | None = None,
    structure: Literal["auto", "full", "triangular", "layered"] = "auto",
    kappa: float = 0.99,
    preset: str | None = None,
    skip: Sequence[str] = (),
    pattern: str = "weights",
    blocks: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> ImplicitModel:
    """Turn a trained network into an implicit model by convex state matching (arXiv 2209.09389).

    Args:
        net: A trained network; it is not changed. Linear layers, convolutions, recurrent layers,
            elementwise activations, pooling, normalisation and whatever only moves or averages
            states are read; other operations are kept as they are.
        inputs: Calibration inputs without labels, as the network takes them: a tensor or a NumPy
            array (m, …), whole numbers for tokens, a tuple or a table by name if it takes several;
            or an iterable of such batches. It is passed over once.
        objective: `sparsity`, or `robustness`: the smallest path norm that costs at most one point
            of accuracy (`robustness=0.01`), with half of the weights unless a `sparsity` is given.
        sparsity: Budget: the fraction of the network's weights to do without, in [0, 1).
        structure: Which entries of A may be used: `full`, `triangular`, `layered` or `auto`.
        kappa: Bound on ‖A‖∞,ω for `full`.
        preset: `seed`, the first release's formulas; `paper` or `acml2025`, reconstructions of the
            recipes of two papers.
        skip: Layers to leave as they are, weights and biases: glob patterns of module paths, e.g.
            `["fc", "layer4.*"]`. Their weights count against the budget; a layer that shares one of
            them is skipped, too. `finetune` may change non-zeros of them as of all layers.
        pattern: Which weights may be zero: `weights`, or `n:m` such as `2:4`, which is a budget of
            its own: see `Recipe`.
        blocks: (r, c): r rows × c input channels are zero together, or not; for a `sparsity`.
        seed: Seed of what is random: the directions in which the outputs are probed, and the noise
            of a level of robustness. The convex solve is not.
        **options: Further fields of `Recipe`, and `batch_size`, `workers`, `device`, `checkpoint`,
            `time_limit`, `executor` of `fit`.

    Returns:
        The model.

    Raises:
        InputError: If the network, the inputs or an option cannot be used.
    """
    settings = {name: options.pop(name) for name in list(options) if name in Recipe.__annotations__}
    unknown = set(options) - set(MACHINE)
    if unknown:
        accepted = (*Recipe.__annotations__, *MACHINE)
        raise InputError(f"unknown option {min(unknown)!r}: accepted are {', '.join(accepted)}")
    settings["skip"] = tuple(skip) if isinstance(skip, list) else skip
    settings["blocks"] = tuple(blocks) if isinstance(blocks, list) else blocks
    if objective == "robustness" and preset is None and settings.get("robustness") is None:
        settings["robustness"] = ONE_POINT
        sparsity = HALF if sparsity is None and pattern == "weights" else sparsity
    recipe = Recipe(
        objective=objective,
        sparsity=sparsity,
        structure=structure,
        kappa=kappa,
        pattern=pattern,
        **settings,
    ).with_preset(preset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return fit(net, inputs, recipe, seed=seed, **options).model


def fit(
    net: nn.Module | ExportedProgram,
    inputs: Tensor | Iterable[Any],
    recipe: Recipe,
    *,
    batch_size: int = 1000,
    workers: int | None = None,
    device: torch.device | str | None = None,
    checkpoint: Path | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    executor: Asked = None,
) -> Fit:
    """Do what `implicitize` does, and keep the certificates of the rows.

    Where some seconds are expected, a line says how long it will take and how much memory; what
    does not fit into memory is refused with the largest number of inputs that would.

    Args:
        net: The teacher.
        inputs: Calibration inputs, passed over once.
        recipe: What to solve.
        batch_size: Samples a step of the passes over the data.
        workers: Parallel blocks of rows and batches; all processors when omitted.
        device: Where states, Grams and rows are computed; the network's own by default.
        checkpoint: Folder that keeps finished blocks, for a run that is stopped and taken up.
        seed: Seed of what is random, see `implicitize`.
        time_limit: Seconds for the whole call, those before a stop included. Where they are short,
            supports are chosen once, certificates end early (their rows are `time_limit`), and
            there are fewer sweeps; the budget is met in any case. None: no limit.
        executor: Who takes batches and rows: `threads` (the default) or `processes`, as many as
            `workers` says; any executor of `concurrent.futures`; or a client of Dask. The bits do
            not depend on it. The sweeps on the outputs use threads in any case.

    Returns:
        The model and its records.

    Raises:
        InputError: If the network, the inputs or an option cannot be used.
    """
    clock, deadline = _Clock(), Deadline(time_limit)
    check_device(device or "cpu")
    net = unwrapped(net)
    stream = batches(inputs, batch_size, net)
    network = _network(net, stream)
    if network.nonzeros == 0:
        raise InputError("the network has no non-zero weights: at least one is needed")
    structure = structure_of(recipe, network)
    recipe.require_heard(not network.structured, structure)
    if recipe.robustness is not None:
        _require_classes(network)
        robustify.require_slopes(network, stream.m)
    home = network.like.device
    if device is not None:
        network = network.changed(lambda tensor: tensor.to(device))
    many = count(workers)
    held = nullcontext() if checkpoint is None else lock.held(checkpoint)
    with held, opened(executor, many) as inner:
        given = many, Workers(inner), checkpoint, seed, deadline
        matching = Matching(network, structure, stream, recipe, *given)
        priced = robustify.LEVELS * robustify.SWEEPS if recipe.robustness is not None else 0
        expected = matching.expect(priced)
        tell(expected)
        clock.lap("capture")
        # products of few rows are short: threads of one product would mostly wait for each other
        with (
            torch.no_grad(),
            threads.single_threaded(),
            progress.whole("implicit model", expected.phases),
        ):
            matching.plan()
            clock.lap("level")
            matching.solve()
            clock.lap("solve")
            sweep(matching)
            clock.lap("sweeps")
            levels = _level(matching, recipe, clock)
    if matching.sweeps:
        # only the sweeps spend again what dead states had of the budget
        matching.take(folded(matching.matched, left=matching.left), "dead states")
    equations = matching.matched.changed(lambda tensor: tensor.to(home))
    constraint = matching.constraint
    omega = constraint.omega if constraint and structure == "full" else None
    model = ImplicitModel.from_equations(equations, network.nonzeros, structure, omega)
    # layers that are skipped read all the states that they read, and patterns have their places
    if matching.sweeps and not recipe.skip and not matching.patterned:
        model = without_dead_states(model)
    matching.schedule.tell()
    seconds = {
        name: lap + matching.stages.earlier.get(name, 0.0) for name, lap in clock.laps.items()
    }
    ledger = matching.ledger
    return Fit(
        model, ledger.every, ledger.trace, seconds, levels, ledger.budgets, matching.unit_records
    )


def _require_classes(network: StateEquations) -> None:
    outputs = network.returned
    if len(outputs) > 1 or any(o.end == "sigmoid" or len(o.shape) != 1 for o in outputs):
        shapes = ", ".join(f"{o.end or 'numbers'} {o.shape}" for o in outputs)
        raise InputError(f"robustness: outputs {shapes}: accepted is one row of classes a sample")


def _network(net: nn.Module, stream: Batches) -> StateEquations:
    if not isinstance(net, ImplicitModel):
        return capture(net, stream.example, stream.inputs)
    equations = net.equations
    if equations.feedback:
        raise InputError(
            "a full model has states that feed back: accepted are the network it came from, and "
            "models of structure triangular or layered"
        )
    own, given = ([(i.shape, bool(i.dtype)) for i in x] for x in (equations.inputs, stream.inputs))
    if own != given:
        raise InputError(
            f"calibration inputs of shape {[shape for shape, _ in given]}: accepted are those of "
            f"the model, {[shape for shape, _ in own]} a sample"
        )
    taken = equations.changed(lambda tensor: tensor.detach())
    return replace(taken, nonzeros=net.nonzeros)


def _level(matching: Matching, recipe: Recipe, clock: "_Clock") -> list[Row]:
    if recipe.robustness is None:
        return []
    timer = matching.schedule.prices(robustify.LEVELS)

    def report(part: float, info: str) -> None:
        timer.lap()
        step(part, info)

    with progress.task(LEVELS, total=robustify.LEVELS) as step:
        found, path = robustify.robustify(
            matching.matched,
            matching.layers,
            *samples(matching),
            recipe.robustness,
            report,
            inactive=matching.inactive,
            workers=matching.workers,
            seed=matching.seed,
            more=lambda: timer.room() >= 1,
        )
    if timer.over:
        matching.schedule.note("the path to a level of robustness")
    matching.take(found, "robustness")
    clock.lap("robustness")
    return [vars(level) for level in path]


def structure_of(recipe: Recipe, network: StateEquations) -> Structure:
    """Say which structure is solved.

    Args:
        recipe: What is asked for.
        network: The network as captured.

    Returns:
        The structure asked for; for `auto`, layered where the network is not all matrices, or uses
        a weight several times, or where layers are written by factors: those of a rank that reads
        every earlier layer have a weight for each of its states.
    """
    if recipe.structure != "auto":
        return recipe.structure
    if recipe.rank is not None or recipe.units:
        return "layered"
    uses = [term.parameter for e in network.layers for term in e.terms if term.parameter]
    layered = network.structured or len(set(uses)) < len(uses)
    return "layered" if layered else "triangular"


def check_device(device: torch.device | str) -> None:
    """Refuse a device that is not there, or that computes nothing.

    Args:
        device: Its name.

    Raises:
        InputError: If there is none of that name.
    """
    try:
        float(torch.zeros(1, device=device))
    except (RuntimeError, AssertionError):
        raise InputError(f"device {str(device)!r} is not available here: cpu always is") from None


@dataclass
class _Clock:
    last: float = field(default_factory=time.monotonic)
    laps: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self.last = now - self.last, now
