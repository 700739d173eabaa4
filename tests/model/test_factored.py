"""Layers by factors are the layers multiplied out, in every form that a model has."""

import pytest
import torch

import conv_networks
import simplicit
from conv_networks import CONVOLUTIONAL, images
from example_networks import CAPTURED, captured
from shapes import unchecked
from simplicit.calibration.rows import Rows, rows_of, shared
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.model.factored import CHANNELS, Factors, factored
from simplicit.model.implicit import ImplicitModel

RANK = 2


def double(equations: StateEquations) -> StateEquations:
    return equations.changed(lambda t: t.double() if t.is_floating_point() else t)


def factors(equations: StateEquations, rows: Rows, single: bool, seed: int) -> Factors:
    """Factors of some size, and every third weight beside them."""
    W = rows.weights(equations.layers[rows.index])
    groups, K, d = W.shape
    random = torch.Generator().manual_seed(seed)
    left = torch.randn(groups, K, RANK, dtype=W.dtype, generator=random)
    right = torch.randn(groups, RANK, d, dtype=W.dtype, generator=random) / d
    sparse = torch.zeros_like(W)
    sparse.view(-1)[::3] = single * W.flatten()[::3]
    return Factors(rows.index, rows.slots, left, right, sparse)


def both(
    equations: StateEquations, single: bool = False
) -> tuple[StateEquations, StateEquations, int]:
    """The network with factors in all places, multiplied out and as they are, and how many."""
    layers, found = list(equations.layers), []
    for k, rows in enumerate(rows_of(equations)):
        if shared(rows, equations.layers) or rows.uses:
            continue
        own = factors(equations, rows, single, k)
        W = own.left @ own.right + own.sparse
        layers[rows.index] = rows.put(layers[rows.index], W, torch.zeros_like(W[..., 0]))
        found.append(own)
    whole = StateEquations(
        tuple(layers[:-1]), layers[-1], equations.input_shape, equations.nonzeros,
        equations.interface,
    )  # fmt: skip
    return whole, factored(whole, found), len(found)


@torch.no_grad()
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *CAPTURED])
def test_factors_are_what_they_are_multiplied_out(name, single):
    network = conv_networks.structured(name) if name in CONVOLUTIONAL else captured(name)
    whole, found, count = both(double(network), single)
    u = torch.randn(5, *network.input_shape, dtype=torch.float64)
    torch.testing.assert_close(found.replay(u)[1], whole.replay(u)[1], rtol=1e-10, atol=1e-10)
    assert len(found.layers) == len(whole.layers) + count
    for e in found.layers:
        if e.name.endswith(CHANNELS):
            assert {len(t.weight) for t in e.terms} == {RANK * e.terms[0].map.groups}
    model = ImplicitModel.from_equations(found)
    assert model.certificate.well_posed
    if not single and not network.kept:
        assert model.nonzeros <= sum(w.numel() for w in model.learned)


SOME = ["lenet", "grouped, dilated, uneven", "transposed convolutions", "tokens"]
"""Networks of different kinds."""


@torch.no_grad()
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", SOME)
def test_a_model_of_factors_is_saved_compiled_and_written_like_any_other(tmp_path, name, single):
    _, equations, _ = both(conv_networks.structured(name), single)
    model = ImplicitModel.from_equations(equations)
    u = images(6, equations.input_shape)
    y = model(u)
    size = float(y.abs().max())
    explicit = model.to_explicit()
    torch.testing.assert_close(explicit(u), y, rtol=1e-4, atol=1e-5 * size)
    model.save(tmp_path)
    assert torch.equal(simplicit.load(tmp_path)(u), y)
    with unchecked():
        fast = simplicit.compile(model, batch=4, threads=1)
    torch.testing.assert_close(fast(u), y, rtol=1e-4, atol=1e-5 * size)
    with pytest.raises(InputError, match="is written by two factors, and the network has one"):
        model.load_into(conv_networks.network(name))


@torch.no_grad()
def test_onnx_files_have_the_factors(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, equations, _ = both(conv_networks.structured(SOME[1]))
    model = ImplicitModel.from_equations(equations).cast(torch.float32)
    model.to_onnx(tmp_path / "model.onnx")  # compares the outputs itself
    assert (tmp_path / "model.onnx").exists()
