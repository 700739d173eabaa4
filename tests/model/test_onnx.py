"""ONNX files against the model: outputs, zeros, the loop of a full model, and what is refused."""

import re
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from interfaces import INTERFACES, called, leaves, network
from random_models import MIXED, implicit_model, inputs, same
from simplicit.capture.read import capture
from simplicit.equations.interface import Input, Interface, Output
from simplicit.equations.phi import Phi, PhiName
from simplicit.equations.stacked import Block
from simplicit.errors import InputError
from simplicit.model.export import onnx_file
from simplicit.model.implicit import ImplicitModel

onnx: Any = pytest.importorskip("onnx")
runtime: Any = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

NAMES = {
    "ids and a mask": (["input_ids", "attention_mask"], ["logits"]),
    "a truth value": (["input_0", "input_1"], ["output"]),
    "logits and probabilities": (["input"], ["output_0", "output_1"]),
}
"""Networks with whole numbers, names, kept operations, convolutions, a softmax at the end."""


def run(path: Path, *given: Tensor) -> list[Tensor]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    feed = {name: part.numpy() for name, part in zip(names, given, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, feed)]


def nonzeros(path: Path) -> int:
    """Of the matrices in the file."""
    tensors = map(onnx.numpy_helper.to_array, onnx.load(path).graph.initializer)
    return sum(int((t != 0).sum()) for t in tensors if t.ndim > 1)


@pytest.mark.parametrize("name", NAMES)
def test_networks_are_called_as_they_are_with_any_number_of_samples(tmp_path, name):
    some = INTERFACES[name][1]()
    model = ImplicitModel.from_equations(capture(network(name), some))
    model.to_onnx(tmp_path / "model.onnx")
    parts = tuple(some.values()) if isinstance(some, dict) else some
    parts = parts if isinstance(parts, tuple) else (parts,)
    for m in (1, 9):
        found = run(tmp_path / "model.onnx", *(part[:m] for part in parts))
        expected = leaves(called(model, some, slice(m)))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert ([i.name for i in graph.input], [o.name for o in graph.output]) == NAMES[name]
    assert str(Path.cwd()).encode() not in (tmp_path / "model.onnx").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_zeros_stay_and_compression_takes_them_out(tmp_path):
    model = implicit_model("triangular", same(Phi("tanh")), input_shape=(900,), density=0.1)
    model.to_onnx(tmp_path / "model.onnx")
    assert nonzeros(tmp_path / "model.onnx") == model.nonzeros
    (found,) = run(tmp_path / "model.onnx", u := inputs(model))
    torch.testing.assert_close(found, model(u).detach(), rtol=1e-12, atol=1e-12)
    payload = (tmp_path / "model.onnx").read_bytes()
    assert len(payload) > 8 * model.parameters_count > 4 * len(zlib.compress(payload))


@pytest.mark.parametrize("tol, max_steps", [(1e-2, 3000), (1e-6, 8)])
def test_the_loop_of_a_full_model_stops_as_the_model_does(tmp_path, tol, max_steps):
    model = implicit_model("full", same(Phi("tanh")), bias=False)
    model.to_onnx(tmp_path / "model.onnx", tol=tol, max_steps=max_steps)
    # small inputs are solved at once, large ones take steps
    u = inputs(model, 60) * torch.logspace(-6, 1, 60)[:, None, None].double()
    found = model.equilibrium(u, method="picard", tol=tol, max_steps=max_steps)
    assert len(found.steps.unique()) > 4
    states = [found.states, u.flatten(1)]
    expected = model.equations.output.preactivation(states).detach()
    (y,) = run(tmp_path / "model.onnx", u)
    torch.testing.assert_close(y[found.converged], expected[found.converged], rtol=0, atol=1e-12)
    assert torch.equal(y.isnan().all(1), ~found.converged)
    assert bool(found.converged.all()) == (max_steps == 3000)
    # not the equilibrium itself, which is elsewhere
    assert (y - model(u))[found.converged].abs().max() > 1e3 * 1e-12


def test_an_input_that_is_not_finite_has_no_outputs(tmp_path):
    model = implicit_model("full", same(Phi("relu")), density=0.6)
    model.to_onnx(tmp_path / "model.onnx")
    u = inputs(model)
    u[1, 0, 0], u[2, 1, 1] = torch.nan, torch.inf
    (y,) = run(tmp_path / "model.onnx", u)
    assert y.isnan().any(1).tolist() == [False, True, True, *[False] * 4]
    assert nonzeros(tmp_path / "model.onnx") == model.nonzeros


def test_every_activation_is_in_the_loop(tmp_path):
    blocks = tuple(Block(name, 2, Phi(name, 0.2)) for name in get_args(PhiName))
    model = implicit_model("full", blocks, dtype=torch.float32, bias=False)
    model.to_onnx(tmp_path / "model.onnx")
    u = inputs(model)
    (y,) = run(tmp_path / "model.onnx", u)
    torch.testing.assert_close(y, model(u).detach(), rtol=1e-4, atol=1e-4)


def test_a_full_model_keeps_the_names_of_inputs_and_outputs(tmp_path):
    equations = implicit_model("full", MIXED).equations
    interface = Interface(
        (Input("x", (2,), "int64"), Input("A", (), "bool"), Input("b", (3, 1))),
        (Output("x", (), "sigmoid"), Output("y.0", (1,), "softmax", 0)),
        "dict",
    )
    model = ImplicitModel.from_equations(replace(equations, interface=interface))
    model.to_onnx(tmp_path / "model.onnx")
    given = [torch.tensor([[1, 2], [-3, 4]]), torch.tensor([True, False]), torch.rand(2, 3, 1)]
    given[2] = given[2].double()
    expected = list(model(*given).values())
    torch.testing.assert_close(run(tmp_path / "model.onnx", *given), expected)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [i.name for i in graph.input] == ["x", "A", "b"]
    assert [o.name for o in graph.output] == ["x_output", "y.0"]


def test_an_export_that_predicts_something_else_is_not_kept(tmp_path, monkeypatch):
    model, other = implicit_model("full"), implicit_model("full", seed=1)
    (tmp_path / "model.onnx").write_bytes(b"before")
    right = onnx_file.looped
    wrong = lambda _, *settings: right(other.equations, *settings)  # noqa: E731
    monkeypatch.setattr(onnx_file, "looped", wrong)
    with pytest.raises(InputError, match="differ by .* no file is written"):
        model.to_onnx(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "model.onnx", tmp_path):
        with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: cannot write [^\n]*$"):
            implicit_model("full").to_onnx(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"^onnx is not .* pip install 'simplicit\[onnx\]'$"):
        implicit_model("full").to_onnx(tmp_path / "model.onnx")


def test_options_of_the_loop_are_refused_where_there_is_none(tmp_path):
    with pytest.raises(InputError, match="tol and max_steps are accepted for structure 'full'"):
        implicit_model("layered").to_onnx(tmp_path / "model.onnx", tol=1e-3)
    with pytest.raises(InputError, match="tol > 0"):
        implicit_model("full").to_onnx(tmp_path / "model.onnx", tol=0.0)


def test_an_operation_that_the_runtime_has_only_in_float32_says_so(tmp_path):
    model = implicit_model("full", same(Phi("gelu")))
    with pytest.raises(InputError, match=r"cannot run it .*Erf.*model\.cast\(torch\.float32\)$"):
        model.to_onnx(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    model.cast(torch.float32).to_onnx(tmp_path / "model.onnx")
