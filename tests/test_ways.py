"""What people do with a model, and with the modules it is written as."""

import copy
import io

import pytest
import torch
from torch import nn

import simplicit
from interfaces import INTERFACES, called, leaves, network
from simplicit.capture.read import capture
from simplicit.model.implicit import ImplicitModel

SOME = ("ids", "two inputs", "image out", "LSTM cells", "addmm")


class Call(nn.Module):
    """A module called as a user would."""

    def __init__(self, inner, inputs):
        super().__init__()
        self.inner, self.inputs = inner, inputs

    def forward(self):
        return called(self.inner, self.inputs)


def half_empty(name: str) -> ImplicitModel:
    model = ImplicitModel.from_equations(
        capture(network(name), INTERFACES[name][1]()), structure="layered"
    )
    with torch.no_grad():
        for weight in model.learned:
            weight[weight.abs() < weight.abs().median()] = 0.0
    return model


@pytest.fixture(params=SOME, scope="module")
def case(request):
    return half_empty(request.param), INTERFACES[request.param][1]()


def same(found, expected, close=1e-5):
    for y, z in zip(leaves(found), leaves(expected), strict=True):
        torch.testing.assert_close(y, z, rtol=close, atol=close)


def both(case):
    model, inputs = case
    return [model, model.to_explicit()], inputs


@torch.no_grad()
def test_copies_compute_the_same(case):
    for module, inputs in ((m, case[1]) for m in both(case)[0]):
        same(called(copy.deepcopy(module), inputs), called(module, inputs), 0)


@torch.no_grad()
def test_weights_can_be_assigned_and_given_to_a_call(case):
    for module, inputs in ((m, case[1]) for m in both(case)[0]):
        twice = {
            name: 2 * value if value.is_floating_point() else value
            for name, value in module.state_dict().items()
        }
        other = copy.deepcopy(module)
        other.load_state_dict(twice, assign=True)

        given = {f"inner.{name}": value for name, value in twice.items()}
        found = torch.func.functional_call(Call(copy.deepcopy(module), inputs), given, ())
        same(found, called(other, inputs))
        assert float((leaves(found)[0] - leaves(called(module, inputs))[0]).abs().max()) > 0


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_as_exact_as_they_are(case, dtype):
    for module, inputs in ((m, case[1]) for m in both(case)[0]):

        def moved(x):
            return x.to(dtype) if x.is_floating_point() else x

        if isinstance(inputs, tuple):
            given = tuple(map(moved, inputs))
        else:
            given = moved(inputs)
        found = called(copy.deepcopy(module).to(dtype), given)
        assert all(y.dtype == dtype for y in leaves(found))
        expected = [y.to(dtype) for y in leaves(called(module, inputs))]
        same(leaves(found), expected, 0.1 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:`isinstance")
@torch.no_grad()
def test_modules_are_exported_and_scripted(case):
    model, inputs = case
    explicit = model.to_explicit()
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    same(called(torch.export.export(explicit, args).module(), inputs), called(model, inputs))
    traced = torch.jit.trace(explicit, args, strict=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    same(called(torch.jit.load(file), inputs), called(model, inputs))


@pytest.mark.parametrize("optimiser", ["SGD", "AdamW"])
def test_zeros_are_held_while_anyone_trains(case, optimiser):
    kinds = {
        "SGD": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, weight_decay=1e-2),
        "AdamW": lambda p: torch.optim.AdamW(p, 1e-2),
    }
    for module, inputs in ((copy.deepcopy(m), case[1]) for m in both(case)[0]):
        handles = simplicit.hold_zeros(module)
        before = [p.detach().clone() for p in module.parameters()]
        steps = kinds[optimiser](module.parameters())

        def step(module=module, inputs=inputs, steps=steps):
            steps.zero_grad()
            losses = [(y - 1).square().mean() for y in leaves(called(module, inputs))]
            torch.stack(losses).sum().backward()
            steps.step()

        for _ in range(3):
            step()
        moved = 0
        for old, new in zip(before, module.parameters(), strict=True):
            moved += int((old != new).sum())
            if old.ndim > 1:
                assert not new[old == 0].any()
        assert moved
        for handle in handles:
            handle.remove()
        step()
        pairs = zip(before, module.parameters(), strict=True)
        assert any(bool(new[old == 0].any()) for old, new in pairs if old.ndim > 1)


def test_a_model_goes_in_again():
    for name in ("sigmoid", "two inputs", "image out"):
        inputs = INTERFACES[name][1]()
        first = simplicit.implicitize(network(name), inputs, sparsity=0.3, sweeps=4, workers=1)
        second = simplicit.implicitize(first, inputs, sparsity=0.3, sweeps=4, workers=1)
        assert second.nonzeros <= round(0.7 * first.nonzeros)
        assert second.reference_nonzeros == first.nonzeros
        assert type(called(second, inputs)) is type(called(first, inputs))


def test_half_precision_is_given_back():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).bfloat16()
    u = torch.randn(40, 1, 8, 8).bfloat16()
    model = simplicit.implicitize(net, u, sparsity=0.5, sweeps=4, workers=1)
    explicit, own = model.to_explicit(), copy.deepcopy(net)
    assert {p.dtype for p in explicit.parameters()} == {torch.bfloat16}
    model.load_into(own)
    with torch.no_grad():
        for y in (explicit(u), own(u)):
            assert y.dtype == torch.bfloat16
            assert float((y.float() - model(u)).abs().max()) < 0.05


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrappers_are_taken_off(wrap):
    net = network("two inputs")
    inputs = INTERFACES["two inputs"][1]()
    model = simplicit.implicitize(wrap(net), inputs, sparsity=0.5, sweeps=4, workers=1)
    own = copy.deepcopy(net)
    model.load_into(wrap(own))
    with torch.no_grad():
        same(called(own, inputs), called(model, inputs), 1e-4)


@pytest.mark.filterwarnings("ignore:`isinstance")
def test_an_exported_program_goes_in():
    net, u = network("sigmoid"), INTERFACES["sigmoid"][1]()
    shapes = {"input": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(net, (u,), dynamic_shapes=shapes)
    with torch.no_grad():
        model = ImplicitModel.from_equations(capture(program, u))
        same(model(u), net(u))


@pytest.mark.parametrize("size", [(8, 8), (12, 10), (16, 16)])
def test_modules_run_at_any_resolution_at_which_the_network_does(size):
    torch.manual_seed(0)
    fit, wide = torch.randn(4, 3, 8, 8), torch.randn(4, 3, *size)
    anywhere = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    ).eval()  # fmt: skip
    image = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 2, 2, 2))
    fixed = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))
    with torch.no_grad():
        for net in (anywhere, image, network("image out"), fixed):
            explicit = ImplicitModel.from_equations(capture(net, fit)).to_explicit()
            if net is fixed and size != (8, 8):
                with pytest.raises(RuntimeError):
                    explicit(wide)
                continue
            torch.testing.assert_close(explicit(wide), net(wide), rtol=1e-4, atol=1e-5)
        shuffled = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 1), nn.ReLU(), nn.Flatten())
        explicit = ImplicitModel.from_equations(capture(shuffled, fit)).to_explicit()
        if size != (8, 8):
            with pytest.raises(RuntimeError):
                explicit(wide)


def test_parameters_have_the_names_of_the_networks_own():
    for name in ("ids", "norm at the end", "two inputs", "softmax", "image out", "table of heads"):
        net, inputs = network(name), INTERFACES[name][1]()
        explicit = ImplicitModel.from_equations(capture(net, inputs)).to_explicit()
        own = {key: tuple(value.shape) for key, value in net.named_parameters()}
        found = {key: tuple(value.shape) for key, value in explicit.named_parameters()}
        if name == "ids":
            own.pop("places.weight")  # a constant
        assert found == own
