"""What is planned is what matching hands out: counts, bytes, and the estimate's own seconds."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from example_networks import seeded
from kinds import CASES, NETWORKS, read
from simplicit import fit
from simplicit.calibration.rows import rows_of
from simplicit.calibration.structure import structured
from simplicit.capture.read import capture
from simplicit.matching.expected.estimate import LAYERS, MOMENTS, SENSITIVITY, SWEEPS, Work
from simplicit.matching.expected.pieces import stages
from simplicit.matching.expected.stage import Stage
from simplicit.outputs.sensitivity import at_once, looked_at
from simplicit.recipe import Recipe
from simplicit.system.rates import NOMINAL

RECIPES = [
    Recipe(),
    Recipe(sparsity=0.5),
    Recipe(sparsity=0.5, sensitivity=False, relu_aware=False),
    Recipe(sparsity=0.5, sweeps=5),
    Recipe(sparsity=0.5, support="elimination"),
    Recipe(sparsity=0.5, support="relaxation"),
    Recipe(rank=1),
    Recipe(rank=1, sparsity=0.5),
    Recipe(pattern="channels", sparsity=0.5),
]


def work_of(kind: str, recipe: Recipe, structure: str = "layered", priced: int = 0) -> Work:
    equations = read(kind)
    written = structured(equations, structure)  # type: ignore[arg-type]
    budget = None if recipe.sparsity is None else round(0.5 * equations.nonzeros)
    sweeps = recipe.passes(not equations.structured, structure)  # type: ignore[arg-type]
    return Work(equations, written, rows_of(written), recipe, sweeps, budget, 4, priced)


def planned(work: Work, m: int, batch: int = 1000) -> list[Stage]:
    felt = at_once(work.network, torch.rand(1, *work.network.input_shape))
    return stages(work, m, NOMINAL, work.forward(NOMINAL), felt, batch)


def check_seconds(work: Work, m: int = 2345) -> None:
    found, rates = planned(work, m), replace(NOMINAL, parallel=4.0)
    expected = work.estimate(m, NOMINAL)
    assert dict.fromkeys(stage.phase for stage in found) == dict.fromkeys(expected.phases)
    for phase, parts in expected.phases.items():
        seconds = sum(stage.seconds for stage in found if stage.phase == phase)
        assert seconds == pytest.approx(sum(parts), rel=1e-9), phase
    # pieces are those of one worker, whatever several bring here
    felt = at_once(work.network, torch.rand(1, *work.network.input_shape))
    assert stages(work, m, rates, work.forward(NOMINAL), felt) == found
    parts = [stage.products for stage in found]
    assert min(parts) >= 0 and sum(parts) > 0


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_one_worker_takes_what_the_estimate_says(kind, recipe):
    check_seconds(work_of(kind, recipe))


@pytest.mark.parametrize(("kind", "structure"), CASES)
def test_so_it_does_in_every_structure_and_with_levels_of_robustness(kind, structure):
    check_seconds(work_of(kind, Recipe(sparsity=0.5), structure, priced=24))


def test_so_it_does_for_a_full_matrix_of_low_rank():
    work = work_of("matrices", Recipe(rank=1, structure="full"), "full")
    assert work.equations.feedback
    check_seconds(work)
    found, samples = work.estimate(2345, NOMINAL), work.estimate(4690, NOMINAL)
    twice = [b.states / a.states for a, b in zip(found.layers, samples.layers, strict=True)]
    assert twice == pytest.approx([2.0] * len(twice), rel=0.2)


def test_products_are_those_of_the_network():
    net = seeded(lambda: nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5)))
    equations = capture(net, torch.rand(4, 30))
    work = Work(equations, equations, rows_of(equations), Recipe(), 0, None, 1)
    found, m = planned(work, 700), 700
    of = {(stage.layer, stage.step): stage.products for stage in found}
    first, last = (rows.name for rows in work.layers)
    # network and model pass each layer, but nothing reads the last one's states
    assert of[first, "states of the network"] == of[first, "states of the model"] == m * 600
    assert of[last, "states of the network"] == 2 * m * 100
    # with the bias: products of every two features once, and of features and targets
    assert of[first, "moments"] == m * (31 * 32 / 2 + 31 * 20)
    assert of[last, "moments"] == m * (21 * 22 / 2 + 21 * 5)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("recipe", [Recipe(sparsity=0.5), Recipe(sparsity=0.5, sweeps=4)])
@pytest.mark.parametrize(("m", "batch"), [(1, 1000), (777, 64), (2345, 1000), (3000, 2500)])
def test_pieces_cover_rows_and_samples(kind, recipe, m, batch):
    work = work_of(kind, recipe)
    found = planned(work, m, batch)
    rows = {
        layer.name: layer.weights(work.equations.layers[layer.index]).shape[:2]
        for layer in work.layers
    }

    def covered(phase: str, step: str) -> dict[str, float]:
        counts: dict[str, float] = defaultdict(float)
        for stage in found:
            if (stage.phase, stage.step) == (phase, step):
                counts[stage.layer] += stage.times * sum(p.count * p.size for p in stage.pieces)
        return counts

    relu = {e.name for e in work.equations.layers if getattr(e.phi, "name", "") == "relu"}
    for name, (groups, K) in rows.items():
        # three choices of supports, and behind a ReLU two refits; sweeps start from one choice
        times = 1 if work.sweeps else 5 if name in relu else 3
        assert covered(LAYERS, "refit")[name] == times * groups * K
        assert covered(LAYERS, "certificates")[name] == groups * K
    for phase in (MOMENTS, LAYERS):
        assert set(covered(phase, "moments").values()) == {m}
        assert set(covered(phase, "states of the network").values()) == {m}
    assert set(covered(SENSITIVITY, "slopes").values()) == {looked_at(m)}
    if work.sweeps:
        assert set(covered(SWEEPS, "sweeps").values()) == {m}


class Recorder(ThreadPoolExecutor):
    """Does at once what it is given, and keeps the sizes of what goes there and back.

    A pool of threads, to which light pieces go as well.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self.calls: list[tuple[str, int, int]] = []

    def submit(self, call: Any, /, *args: Any, **options: Any) -> Future[Any]:
        answer = call(*args, **options)
        functions = [f for f in functions_in([call, *args]) if "workers" not in f.__module__]
        function = functions[0]
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self.calls.append((name, size_of([call, *args]), size_of(answer)))
        future: Future[Any] = Future()
        future.set_result(answer)
        return future

    def count(self, *names: str) -> int:
        return sum(call[0] in names for call in self.calls)

    def bytes(self, *names: str) -> tuple[int, int]:
        own = [(there, back) for name, there, back in self.calls if name in names]
        return sum(there for there, _ in own), sum(back for _, back in own)


def functions_in(some: Any) -> Iterator[Callable[..., Any]]:
    for part in some:
        if isinstance(part, partial):
            yield from functions_in([part.func, *part.args])
        elif callable(part) and hasattr(part, "__name__"):
            yield part


def size_of(some: Any) -> int:
    """Bytes of all arrays in it, each once."""
    found: dict[tuple[int, tuple[int, ...]], int] = {}
    seen: dict[int, Any] = {}

    def look(part: Any) -> None:
        if isinstance(part, Tensor):
            found[part.data_ptr(), tuple(part.shape)] = part.nbytes
        elif id(part) not in seen and not isinstance(part, (type, str)):
            seen[id(part)] = part
            if isinstance(part, dict):
                look([*part.values()])
            elif isinstance(part, (list, tuple)):
                for own in part:
                    look(own)
            elif isinstance(part, partial):
                look([*part.args])
            elif type(part).__name__ == "ScaledGram":  # without what each process makes itself
                look(part.__reduce__()[1])
            elif hasattr(part, "__dict__"):
                look(vars(part))

    look(some)
    return sum(found.values())


def dense() -> nn.Module:
    torch.manual_seed(0)
    hidden = (nn.Linear(40, 90), nn.ReLU(), nn.Linear(90, 70), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(70, 5))


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    hidden = (nn.Conv2d(2, 9, 3), nn.ReLU(), nn.Conv2d(9, 70, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*hidden, nn.Linear(70 * 16, 5)).eval()


LAYERED = {"structure": "layered", "sweeps": 0}
BUILT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, Recipe]] = {
    "dense": (dense, (40,), 1300, Recipe(sparsity=0.8, **LAYERED)),
    "eliminated": (dense, (40,), 1300, Recipe(sparsity=0.8, support="elimination", **LAYERED)),
    "no budget": (dense, (40,), 1300, Recipe(structure="layered")),
    # so many that the candidates of the last layer's rows fill up to one length
    "convolutions": (convolutions, (2, 8, 8), 300, Recipe(sparsity=0.8)),
}


@cache
def built(name: str) -> tuple[Recorder, list[Stage]]:
    """What a fit hands out, and what was planned."""
    make, shape, m, recipe = BUILT[name]
    net, u, recorder = make(), torch.randn(m, *shape), Recorder()
    fit.fit(net, u, recipe, executor=recorder, batch_size=500)
    equations = capture(net, u[:2])
    budget = None if recipe.sparsity is None else round(0.2 * equations.nonzeros)
    work = Work(equations, equations, rows_of(equations, own=True), recipe, 0, budget, 1)
    return recorder, planned(work, m, batch=500)


STEPS = {
    ("frontier._preactivations", "frontier._activated"): ("states of the network",),
    ("frontier._states",): ("states of the model",),
    ("moments._shard",): ("moments",),
    ("moments._retarget",): ("moments of new targets",),
    ("sensitivity._outputs",): ("outputs",),
    ("sensitivity._sums",): ("slopes",),
    ("of_rows._tile",): ("elimination",),
    ("of_rows._among",): ("prices among candidates",),
    ("splitting._problem",): ("rough prices",),
    ("splitting.of",): ("systems of splitting",),
    ("splitting._tile",): ("splitting",),
    ("near._step",): ("refit",),
    ("tiles.solve_piece",): ("certificates",),
}

SHARES = ("near._step", "of_rows._tile", "of_rows._among")
"""Their answers are as long as rows' shares, which are not known before."""


@pytest.mark.parametrize("name", BUILT)
def test_so_many_pieces_are_handed_out(name):
    recorder, found = built(name)
    for functions, steps in STEPS.items():
        if functions == ("splitting._tile",) and name == "convolutions":
            continue  # long rows settle before the last level
        own = [s for s in found if s.step in steps]
        # φ goes out by itself, of all layers but the last
        functions = [f for f in functions if f != "frontier._activated"]
        assert recorder.count(*functions) == sum(s.times * s.count for s in own), functions
    named = {f for functions in STEPS for f in functions}
    named.add("coupled._step")  # of threads here, whoever takes the others
    assert {call[0] for call in recorder.calls} <= named


@pytest.mark.parametrize("name", BUILT)
def test_their_bytes_are_those_of_the_arrays(name):
    recorder, found = built(name)
    for functions, steps in STEPS.items():
        if functions == ("splitting._tile",):
            continue  # R and Z are the same array at the first level
        own = [s for s in found if s.step in steps]
        # a piece has all that it needs: what is shared is in every one
        there = sum(s.times * p.count * (s.shared + p.sent) for s in own for p in s.pieces)
        back = sum(s.times * p.count * p.returned for s in own for p in s.pieces)
        sent, returned = recorder.bytes(*functions)
        assert there == pytest.approx(sent, rel=0.05), functions
        if not set(functions) & set(SHARES):
            assert back == pytest.approx(returned, rel=0.05), functions
    assert sum(recorder.bytes(*[f for functions in STEPS for f in functions])) > 1e6
