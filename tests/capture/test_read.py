import copy
from contextlib import suppress

import pytest
import torch
from torch import nn

from example_networks import CAPTURED, REFUSED, Net, captured, example, mlp, seeded, sequential
from simplicit.capture.read import capture
from simplicit.errors import InputError


def logits_of(net: nn.Module, u: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y = copy.deepcopy(net).eval()(u.clone())
    return y["logits"] if isinstance(y, dict) else y


@pytest.mark.parametrize("name", CAPTURED)
def test_equations_are_the_network(name):
    net, u = seeded(CAPTURED[name]), example()
    equations = captured(name)
    for inputs in (u, 3 * example(5), u[:1]):
        y = logits_of(net, inputs)
        z, replayed = equations.replay(inputs)
        scale = y.abs().max()
        assert (replayed - y).abs().max() <= 1e-9 * scale
        assert [z_l.shape for z_l in z] == [(len(inputs), e.size) for e in equations.hidden]

        # the implicit model from x = 0 is the network after as many steps as it has layers
        A, B, C, D, b, d = equations.dense()
        x = torch.zeros(len(inputs), equations.n, dtype=torch.float64)
        for _ in equations.hidden:
            x = equations.activate(x @ A.T + inputs @ B.T + b)
        assert (x @ C.T + inputs @ D.T + d - y).abs().max() <= 1e-9 * scale


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(name, capfd):
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as caught:
        capture(seeded(make), example())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_layers_are_named_and_ordered_as_in_the_network():
    equations = captured("linear after linear")
    assert [(e.name, e.size, e.phi.name) for e in equations.hidden] == [
        ("0", 5, "identity"),
        ("2", 4, "relu"),
        ("4", 7, "identity"),
    ]
    assert (equations.output.name, equations.output.phi.name) == ("6", "identity")
    assert (equations.p, equations.n, equations.q) == (6, 16, 3)


def test_a_layer_used_again_has_a_name_of_its_own():
    equations = captured("shared")
    assert [e.name for e in equations.hidden] == ["layers.0", "layers.0@1"]


def test_leaky_slopes_are_read():
    equations = captured("leaky relu")
    assert [phi.slope for phi in equations.elementwise] == [0.01, 0.3, 0.2]


def test_weights_are_the_teachers_own():
    net = seeded(CAPTURED["no bias"])
    equations = capture(net, example())
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    for equation, module in zip((*equations.hidden, equations.output), linears, strict=True):
        (term,) = equation.terms
        assert torch.equal(term.weight, module.weight) and equation.bias is None
        assert not term.weight.requires_grad
        assert term.weight.data_ptr() != module.weight.data_ptr()


def test_sources_of_sums():
    equations = captured("residual")
    sources = [e.sources for e in (*equations.hidden, equations.output)]
    assert sources == [(-1,), (-1, 0), (-1, 1)]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("relu", 30 + 20 + 28 + 21),
        ("linear after linear", 30 + 20 + 28 + 21),
        ("shared", 36 + 18),
        ("tied", 24 + 24),
        ("matmul, constants", 24),  # used straight and transposed
        ("batch norm", 30 + 15),
        ("weight norm", 30 + 15),
        ("residual", 36 + 36 + 36),
    ],
)
def test_nonzeros_count_weights_once(name, count):
    assert captured(name).nonzeros == count


def test_nonzeros_leave_out_zeros():
    net = sequential("relu")
    with torch.no_grad():
        net.get_parameter("0.weight")[0] = 0.0
    assert capture(net, example()).nonzeros == 99 - 6


@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_is_left_as_it_was(training):
    net = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(5, 3)
    )
    net.double().train(training)
    net[0].weight.requires_grad_(False)
    net[4].eval()
    net[4].weight.grad = torch.ones(3, 5).double()
    net[0].register_forward_hook(lambda module, inputs, output: None)
    u = example().requires_grad_()
    modes = [module.training for module in net.modules()]
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    before = {name: (id(t), t.clone(), t.requires_grad) for name, t in tensors.items()}
    attributes = [set(vars(module)) for module in net.modules()]
    random = torch.get_rng_state()

    equations = capture(net, u)

    assert [module.training for module in net.modules()] == modes
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert list(tensors) == list(before)
    for name, (identity, value, requires_grad) in before.items():
        assert id(tensors[name]) == identity and tensors[name].requires_grad == requires_grad
        assert torch.equal(tensors[name], value)
    assert torch.equal(net[4].weight.grad, torch.ones(3, 5).double())
    assert net[0].weight.grad is None and u.grad is None
    assert len(net[0]._forward_hooks) == 1
    assert [set(vars(module)) for module in net.modules()] == attributes
    assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()
    for module in net.modules():  # and the equations are copies
        for parameter in module.parameters(recurse=False):
            parameter.data.zero_()
    assert equations.output.terms[0].weight.abs().min() > 0


def test_state_kept_by_the_forward_pass_is_not_touched():
    net = seeded(CAPTURED["state of its own"])
    capture(net, example())
    assert net.get_buffer("calls") == 0 and net.steps == 0


def test_tensors_kept_by_the_forward_pass_stay_on_the_copy():
    def keep(net: Net, x: torch.Tensor) -> torch.Tensor:
        net.last = x
        return net.layers[0](x.relu())

    net = seeded(lambda: Net(keep, nn.Linear(6, 3)))
    with suppress(InputError):  # older releases of torch.export refuse it
        capture(net, example())
    assert not hasattr(net, "last")


def test_the_example_is_left_as_it_was():
    u = example()
    capture(seeded(CAPTURED["changes its input"]), u)
    assert torch.equal(u, example())


def test_a_refused_network_keeps_its_mode():
    net = seeded(REFUSED["classes"][0]).train()
    with pytest.raises(InputError):
        capture(net, example())
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    net = seeded(CAPTURED["batch norm"])
    net.get_buffer("2.running_mean")[1] = value
    with pytest.raises(InputError, match=r"buffer '2.running_mean' has NaN or Inf"):
        capture(net, example())
    with torch.no_grad():
        net.get_parameter("1.weight")[2, 3] = value
    with pytest.raises(InputError, match=r"parameter '1.weight' has NaN or Inf"):
        capture(net, example())


@pytest.mark.parametrize(
    ("u", "message"),
    [
        (example()[:0], r"shape \(0, 6\)"),
        (example()[0], r"shape \(6,\)"),
        (torch.ones(8, 6, dtype=torch.uint8), "uint8"),
        (example() * float("nan"), "NaN"),
    ],
)
def test_examples_that_are_no_good(u, message):
    with pytest.raises(InputError, match=message):
        capture(seeded(CAPTURED["relu"]), u)


def test_one_sample_is_enough_and_images_keep_their_shape():
    net = seeded(lambda: nn.Sequential(nn.Flatten(), mlp(nn.ReLU())))
    u = example().reshape(8, 1, 2, 3)
    equations = capture(net, u[:1])
    assert equations.input_shape == (1, 2, 3) and equations.p == 6
    assert torch.allclose(equations.replay(u)[1], logits_of(net, u), rtol=1e-12)


def test_the_networks_dtype_is_kept():
    net = seeded(CAPTURED["relu"]).float()
    equations = capture(net, example())  # of another dtype
    assert all(e.terms[0].weight.dtype == torch.float32 for e in equations.hidden)
    assert equations.replay(example())[1].dtype == torch.float32


def test_parts_in_less_precision_are_read_in_the_networks_own():
    net = seeded(
        lambda: Net(lambda s, x: s.layers[0](x.relu().half().double()), nn.Linear(6, 3).double())
    )
    u = example()
    assert (capture(net, u).replay(u)[1] - net(u)).abs().max() < 1e-2


def test_memory_between_calls_is_noticed():
    def remembers(net: Net, x: torch.Tensor) -> torch.Tensor:
        net.calls += 1
        return net.layers[0](x.relu()) + net.calls

    with pytest.raises(InputError, match="not a fixed function"):
        capture(seeded(lambda: Net(remembers, nn.Linear(6, 3))), example())
