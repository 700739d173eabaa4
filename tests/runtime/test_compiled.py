import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import conv_networks
import interfaces
import random_models
import random_networks
import simplicit
from conv_networks import CONVOLUTIONAL
from interfaces import INTERFACES
from shapes import unchecked
from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.model.fixed_point import NotConvergedError
from simplicit.model.implicit import ImplicitModel
from simplicit.runtime.bound import by_kind
from simplicit.runtime.lower import lowered
from simplicit.runtime.program import Rows, Sums

CALLED = [
    "ids and a mask", "two inputs by name", "dataclass", "image of events", "norm at the end",
    "LSTM cells", "bilinear", "einsum", "one event", "heads with ends", "a truth value",
]  # fmt: skip
"""Of the networks that take or return anything but one row of numbers."""


def double(equations: StateEquations) -> ImplicitModel:
    exact = equations.changed(lambda t: t.double() if t.is_floating_point() else t)
    return ImplicitModel.from_equations(exact)


def compiled(model: ImplicitModel) -> Any:
    with unchecked():
        return simplicit.compile(model, batch=8, threads=1)


def assert_agree(y: Tensor, wanted: Tensor, tolerance: float, rounding: float = 0.0):
    """`rounding`: an error that the outputs may have whatever their size."""
    size = wanted.abs().flatten(1).amax(1).clamp_min(1e-3)
    error = (y - wanted).abs().flatten(1).amax(1)
    assert (error <= tolerance * size + rounding).all(), (error / size).max()


@torch.no_grad()
def agree(equations: StateEquations, batches: tuple[int, ...] = (1, 3, 8, 21)) -> None:
    """The compiled model is as near to the exact outputs as the model is."""
    model, exact = ImplicitModel.from_equations(equations), double(equations)
    fast, twice = (compiled(m) for m in (model, exact))
    inputs = torch.randn(40, *equations.input_shape, dtype=equations.like.dtype)
    outputs = exact(inputs.double())
    # Of many inputs: where large terms cancel, one output says nothing of its rounding.
    rounding = float((model(inputs).double() - outputs).abs().max())
    for m in batches:
        u, wanted = inputs[:m], outputs[:m]
        assert_agree(twice(u.double()), wanted, 1e-10)
        y = fast(u)
        assert y.dtype == u.dtype and y.shape == wanted.shape
        assert_agree(y.double(), wanted, 1e-5, 4 * rounding)


@pytest.mark.parametrize("start", range(0, 40, 10))
def test_random_networks(start):
    for seed in range(start, start + 10):
        agree(random_networks.equations(seed), (1, 11))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_networks(name):
    agree(conv_networks.sparse(conv_networks.structured(name)), (1, 9))


@torch.no_grad()
@pytest.mark.parametrize("name", CALLED)
def test_called_as_the_network_is(name):
    net, inputs = interfaces.network(name), INTERFACES[name][1]()
    model = ImplicitModel.from_equations(capture(net, inputs))
    fast = compiled(model)
    for some in (slice(1), slice(13)):
        found, wanted = (interfaces.called(f, inputs, some) for f in (fast, model))
        assert type(found) is type(wanted)
        for y, z in zip(interfaces.leaves(found), interfaces.leaves(wanted), strict=True):
            assert y.dtype == z.dtype and y.shape == z.shape
            assert_agree(y.reshape(len(y), -1), z.reshape(len(z), -1), 1e-5)


@pytest.mark.parametrize("structure", ["triangular", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_matrices(structure, dtype):
    model = random_models.implicit_model(structure, density=0.5, dtype=dtype)
    u = random_models.inputs(model, 20)
    fast = simplicit.compile(model, threads=1)
    assert_agree(fast(u), model(u), 1e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_full_model_has_the_statuses_of_the_model(value):
    model = random_models.implicit_model("full")
    with torch.no_grad():  # of B and D: no weight reads the first input
        for e in model.equations.layers:
            e.terms[1].weight[:, 0] = 0.0
    fast, u = simplicit.compile(model, threads=1), random_models.inputs(model)
    u[2, 0, 0] = value
    messages = []
    for one in (model, fast):
        with pytest.raises(NotConvergedError) as error:
            one(u)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def mlp() -> ImplicitModel:
    torch.manual_seed(0)
    first = nn.Linear(12, 30)
    with torch.no_grad():  # nothing reads place 0, and too few weights are left for torch
        first.weight[:, ::2] = 0.0
        first.weight[4:] = 0.0
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(30, 4))
    return ImplicitModel.from_equations(capture(net, torch.randn(4, 12)))


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_what_the_model_says(place, value):
    # at place 0 no weight reads it
    model = mlp()
    u = torch.randn(5, 12)
    u[3, place] = value
    with pytest.raises(NotConvergedError) as wanted:
        model(u)
    with pytest.raises(NotConvergedError) as found:
        simplicit.compile(model, threads=1)(u)
    assert str(found.value)[-60:] == str(wanted.value)[-60:]


@torch.no_grad()
def test_bits_depend_neither_on_threads_nor_on_who_else_calls():
    equations = conv_networks.sparse(conv_networks.structured("resnet, option A"))
    model = ImplicitModel.from_equations(equations)
    fast = simplicit.compile(model, batch=16, threads=2)
    (engine,) = fast.engines
    u = torch.randn(65, *model.input_shape)
    wanted = fast(u)
    for engine.threads in (1, 2, 3):
        for engine.part in (8, 16, 64):
            assert torch.equal(fast(u), wanted)
    with ThreadPoolExecutor(4) as pool:  # calls take turns
        assert all(torch.equal(y, wanted) for y in pool.map(fast, [u] * 8))


def test_a_compiled_model_is_freed_with_its_last_reference():
    model = ImplicitModel.from_equations(conv_networks.structured("encoder layer"))
    fast = compiled(model)
    fast(torch.randn(3, *model.input_shape))
    (engine,) = fast.engines
    gone = [weakref.ref(part) for part in (fast, engine, *engine._bound.values())]
    gc.disable()
    try:
        del fast, engine
        assert [one() for one in gone] == [None] * len(gone)
    finally:
        gc.enable()


@torch.no_grad()
def test_arrays_come_out_as_arrays():
    model, u = mlp(), torch.randn(6, 12)
    y = simplicit.compile(model, threads=1)(u.numpy())
    assert isinstance(y, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(y), model(u))


@torch.no_grad()
def test_no_samples_give_no_outputs():
    assert simplicit.compile(mlp(), threads=1)(torch.zeros(0, 12)).shape == (0, 4)


@torch.no_grad()
def test_weights_are_those_of_the_time_of_compiling():
    model, u = mlp(), torch.randn(3, 12)
    before, fast = model(u), simplicit.compile(model, threads=1)
    for weight in model.learned:
        weight.mul_(2)
    torch.testing.assert_close(fast(u), before)


@torch.no_grad()
def test_strided_inputs_are_read_as_they_are():
    model, u = mlp(), torch.randn(12, 9).T
    torch.testing.assert_close(simplicit.compile(model, threads=1)(u), model(u))


def test_what_is_refused():
    model = mlp()
    fast = simplicit.compile(model, threads=1)
    with pytest.raises(simplicit.InputError, match="require a gradient"):
        fast(torch.randn(2, 12, requires_grad=True))
    with pytest.raises(simplicit.InputError, match="accepted is"):
        fast(torch.randn(2, 11))
    some: Any = nn.Linear(2, 2)
    with unchecked(), pytest.raises(simplicit.InputError, match="compile of a Linear"):
        simplicit.compile(some)
    wrong: list[Any] = [{"batch": 0}, {"threads": 0}, {"batch": 2.5}, {"threads": True}]
    for options in wrong:
        with unchecked(), pytest.raises(simplicit.InputError, match="whole numbers from 1"):
            simplicit.compile(model, **options)


def blocked(equations: StateEquations) -> StateEquations:
    """Four rows at a time read the same channels."""
    random = torch.Generator().manual_seed(0)

    def pruned(term: Any) -> Any:
        W = term.weight.flatten(1)
        on = torch.rand(-(-len(W) // 4), W.shape[1], generator=random) < 0.4
        W = W * on.repeat_interleave(4, 0)[: len(W)]
        return replace(term, map=replace(term.map, weight=W.view_as(term.weight)))

    layers = [replace(e, terms=tuple(map(pruned, e.terms))) for e in equations.layers]
    return replace(equations, hidden=tuple(layers[:-1]), output=layers[-1])


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_rows_that_read_the_same(name):
    agree(blocked(conv_networks.structured(name)), (1, 9))


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_rows_that_read_the_same_in_panels_and_rows_that_are_left(classes):
    net = nn.Sequential(nn.Linear(900, 24), nn.ReLU(), nn.Linear(24, classes))
    equations = blocked(capture(net, torch.rand(2, 900)))
    parts = [step.part for step in lowered(equations).steps if isinstance(step, Sums)]
    kinds = [[kind for kind, _, _ in by_kind(part, None)] for part in parts]
    assert kinds == [["blocks"], {3: ["sums"], 4: ["blocks"], 10: ["blocks", "sums"]}[classes]]
    agree(equations)


def test_rows_together_are_the_same_rows():
    random = np.random.default_rng(0)
    dense = random.normal(size=(12, 30)) * (random.random((12, 30)) < 0.3)
    row, column = dense.nonzero()
    rows = Rows.of(row, column, dense[row, column], 12)
    found = rows.together(4)
    again = np.zeros_like(dense)
    for k in range(4):
        again[4 * found.row + k, found.offsets] = found.values[:, k]
    assert (again == dense).all() and len(found.values) == (again.reshape(3, 4, 30) != 0).any(
        1
    ).sum()
    for part, own in ((rows.first(5), dense[:5]), (rows.rest(5), dense[5:])):
        again = np.zeros_like(own)
        again[part.row, part.offsets] = part.values
        assert (again == own).all()
