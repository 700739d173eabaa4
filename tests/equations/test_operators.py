import copy
import io

import pytest
import torch
from torch import nn

from conv_networks import CONVOLUTIONAL, KEPT, images, model, network, sparse, structured
from example_networks import CAPTURED, captured, example, seeded
from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.equations.operators import BlockOperator, with_weights
from simplicit.errors import InputError
from simplicit.model.certificate import absolute
from simplicit.model.fixed_point import NotConvergedError
from simplicit.model.implicit import ImplicitModel


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_dense_weights_predict_as_the_network_does(name):
    dense, u = ImplicitModel.from_equations(structured(name)), images(5)
    with torch.no_grad():
        torch.testing.assert_close(dense(u), network(name)(u.clone()), rtol=1e-9, atol=1e-12)
    assert dense.sparsity == 0 and dense.nonzeros == structured(name).nonzeros


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_states_are_a_fixed_point_of_the_operators(name):
    some, u = model(name), images(3)
    with torch.no_grad():
        found = some.equilibrium(u)
        assert found.converged.all() and (found.residual <= 1e-12).all()
        A, B, C, D = (M.to_dense() for M in (some.A, some.B, some.C, some.D))
        x, flat = found.states, u.flatten(1)
        assert some.b is not None and some.d is not None and x.shape == (3, some.n)
        again = some.equations.activate(x @ A.T + flat @ B.T + some.b)
        torch.testing.assert_close(again, x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(x @ C.T + flat @ D.T + some.d, some(u), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(some.A(x), x @ A.T, rtol=1e-9, atol=1e-9)
        bound = BlockOperator(absolute(some.equations), "A").to_dense()
        assert (A.abs() <= bound + 1e-12).all()
    assert A.shape == some.A.shape == (some.A.shape[0], some.n)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_certificate_bounds_the_norm(name):
    certificate = model(name).certificate
    assert certificate.well_posed and certificate.method == "nilpotent"
    if name in KEPT:  # nothing is known of these operations
        assert certificate.norm != certificate.norm
        return
    assert certificate.norm < 1
    some = model(name)
    assert some.equations is not None
    start, omega = 0, certificate.weights
    sums = BlockOperator(absolute(some.equations), "A").to_dense() @ omega
    for e, places in zip(some.equations.hidden[::-1], some.equations.slices[::-1], strict=True):
        part = sums[start : start + e.size] * e.phi.lipschitz
        part = e.phi(part[None])[0] if e.phi.name == "max_pool" else part
        assert (part <= certificate.norm * omega[places]).all()
        start += e.size


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_plain_modules_give_the_same_outputs(name):
    some, u = model(name), images(4)
    explicit, file = some.to_explicit(), io.BytesIO()
    with torch.no_grad():
        torch.testing.assert_close(explicit(u), some(u), rtol=1e-9, atol=1e-9)
    torch.save(explicit, file)
    assert b"simplicit" not in file.getvalue()
    weights = {id(p): p for p in explicit.parameters() if p.ndim > 1}
    assert sum(int(p.count_nonzero()) for p in weights.values()) <= some.nonzeros


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_weights_go_back_into_the_networks_own_class(name):
    some, u = model(name), images(4)
    net = copy.deepcopy(network(name))
    some.load_into(net)
    with torch.no_grad():
        torch.testing.assert_close(net(u.clone()), some(u), rtol=1e-9, atol=1e-9)
    fresh = seeded(CONVOLUTIONAL[name], seed=5).eval()
    fresh.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fresh(u.clone()), some(u), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in CAPTURED if n not in ("weight norm", "residual")])
def test_dense_networks_have_layered_models_too(name):
    if name in ("matmul, constants", "batch norm"):
        pytest.skip("biases where the network has none")
    some, u = ImplicitModel.from_equations(sparse(captured(name))), example()
    net = copy.deepcopy(seeded(CAPTURED[name]).eval())
    some.load_into(net)
    y, z = net(u.clone()), some(u)
    y, z = (y["logits"], z["logits"]) if isinstance(y, dict) else (y, z)
    torch.testing.assert_close(y, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(some.to_explicit()(u), some(u), rtol=1e-9, atol=1e-9)


class Positive(nn.Linear):
    """A layer whose weight is computed from its parameter, once and for all."""

    def forward(self, input):
        return torch.nn.functional.linear(input, self.weight.abs(), self.bias)


def test_what_cannot_be_written_back_is_refused():
    def changed(e: StateEquations) -> ImplicitModel:
        new = [[t.weight for t in layer.terms] for layer in e.layers]
        biases = [torch.ones(len(layer.terms[0].weight)).double() for layer in e.layers]
        return ImplicitModel.from_equations(with_weights(e, new, biases))

    with pytest.raises(InputError, match="0 has a bias now"):
        changed(captured("no bias")).load_into(seeded(CAPTURED["no bias"]))
    positive = seeded(lambda: nn.Sequential(Positive(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    with pytest.raises(InputError, match="computed from other parameters"):
        changed(capture(positive, example())).load_into(positive)
    with pytest.raises(InputError, match=r"0.weight has shape .* none of the name"):
        changed(captured("relu")).load_into(nn.Linear(3, 3))


def test_a_network_with_other_statistics_is_left_as_it_was():
    name = "resnet, option A"
    other = seeded(CONVOLUTIONAL[name], seed=9)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(InputError, match="gives other outputs"):
        model(name).load_into(other)
    assert other.training
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)


def test_a_weight_of_another_shape_is_refused():
    e = captured("relu")
    weights = [[t.weight.T for t in layer.terms] for layer in e.layers]
    with pytest.raises(InputError, match="a weight of 0 has shape"):
        with_weights(e, weights, [None] * len(e.layers))


def test_casts_and_copies_keep_the_maps():
    some, u = model("resnet, option A"), images(3)
    single = some.cast(torch.float32)
    assert single(u).dtype == torch.float32 and single.nonzeros == some.nonzeros
    torch.testing.assert_close(single(u).double(), some(u), rtol=1e-4, atol=1e-4)
    twin = copy.deepcopy(some).float()
    torch.testing.assert_close(twin(u), single(u))
    with torch.no_grad():
        twin.learned[0].zero_()
    assert twin.nonzeros < some.nonzeros and twin.A.to_dense().dtype == torch.float32


def test_outputs_are_differentiable_in_the_weights():
    some, u = model("lenet"), images(3)
    some(u).square().sum().backward()
    assert all(p.grad is not None for p in some.parameters())


def test_large_batches_are_split_and_states_given_up(monkeypatch):
    some, u = model("concatenation"), images(9)
    whole = some(u)
    monkeypatch.setattr("simplicit.equations.forward.BYTES", 1.0)
    torch.testing.assert_close(some(u), whole, rtol=1e-12, atol=1e-12)


def test_inputs_that_are_not_finite_have_no_prediction():
    some, u = model("lenet"), images(3)
    u[1, 0, 0, 0] = torch.nan
    with pytest.raises(NotConvergedError):
        some(u)
    with pytest.raises(InputError, match="accepted .* are exact"):
        some.equilibrium(u, method="picard")


def test_tied_weights_count_once():
    tied = ImplicitModel.from_equations(captured("tied"))
    assert tied.nonzeros == captured("tied").nonzeros == 48


def test_the_networks_dtype_is_kept():
    net = seeded(CONVOLUTIONAL["one dimension"]).float().eval()
    equations = capture(net, images(2).float())
    assert (
        ImplicitModel.from_equations(equations).cast(torch.float64).learned[0].dtype.itemsize == 8
    )
