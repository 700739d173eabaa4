import copy

import pytest
import torch
from torch import nn

import simplicit
from conv_networks import (
    CONVOLUTIONAL,
    KEPT,
    MatrixPerChannel,
    ResNet20,
    images,
    lenet,
    network,
    structured,
)
from example_networks import seeded
from simplicit.capture.read import capture
from simplicit.equations.layer_phi import MaxPool
from simplicit.equations.operators import nonzeros
from simplicit.equations.weighted_maps import Conv, ConvTranspose, Dense, Gather
from simplicit.errors import InputError


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_equations_are_the_network(name):
    equations, net = structured(name), network(name)
    assert equations.structured == (name != "recurrent")
    assert list(equations.kept) == KEPT.get(name, [])
    for u in (images(5), 3 * images(7), images(1)):
        with torch.no_grad():
            y = net(u.clone())
            z, replayed = equations.replay(u)
        assert (replayed - y).abs().amax(1).le(1e-9 * y.abs().amax(1)).all()
        assert [part.shape for part in z] == [(len(u), e.size) for e in equations.hidden]
        for equation, part in zip(equations.hidden, z, strict=True):
            assert equation.phi(part).shape == (len(u), equation.states)


ALIKE = {"resnet, option A", "concatenation", "tokens", "one dimension", "convolution at the end"}
"""Networks of operations that others have, too."""


class InPlace(nn.Module):
    """A network that writes into a copy of its inputs first."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, u):
        return self.net(u.clone().mul_(1))


# graphs that write in place are written again without, where some operations have other names
@pytest.mark.parametrize("name", [name for name in CONVOLUTIONAL if name not in ALIKE])
def test_a_network_that_writes_in_place_has_the_same_equations(name):
    expected, found = structured(name), capture(InPlace(network(name)), images())
    assert found.nonzeros == expected.nonzeros
    assert [label.removeprefix("net.") for label in found.kept] == list(expected.kept)
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert one.size == other.size and type(one.phi) is type(other.phi)
        for t, w in zip(one.terms, other.terms, strict=True):
            assert torch.equal(t.weight, w.weight)
    u = images(3)
    assert torch.allclose(found.replay(u)[1], expected.replay(u)[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet, option A", "lenet"])
def test_single_precision_is_enough_for_five_digits(name):
    net = seeded(CONVOLUTIONAL[name]).eval().float()
    u = images(5).float()
    with torch.no_grad():
        y, (_, replayed) = net(u.clone()), capture(net, u[:2]).replay(u)
    assert (replayed - y).abs().amax(1).le(1e-5 * y.abs().amax(1)).all()


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_weight_is_found_once(name):
    equations, net = structured(name), network(name)
    weights = dict(net.named_parameters())
    weights = {key: w for key, w in weights.items() if w.ndim > 1 and key.endswith("weight")}
    assert equations.nonzeros == sum(int(w.count_nonzero()) for w in weights.values())
    found = {t.parameter for e in (*equations.hidden, equations.output) for t in e.terms}
    kept = sum(equations.kept_weights.values())
    assert sum(int(weights[key].count_nonzero()) for key in set(weights) - found) == kept
    assert set(equations.kept_weights) <= set(equations.kept)
    assert bool(kept) == (name == "matrix per channel")


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_gains_and_parameters_make_the_weights(name):
    equations, net = structured(name), network(name)
    for equation in (*equations.hidden, equations.output):
        for term in equation.terms:
            raw = net.get_parameter(term.parameter).detach()
            raw = term.stored(raw)
            gain = 1.0 if term.gain is None else term.gain.view(-1, *[1] * (raw.ndim - 1))
            torch.testing.assert_close(term.weight, gain * raw, rtol=1e-12, atol=0)


def test_a_residual_network_is_read_block_by_block():
    equations = structured("resnet, option A")
    assert [e.name for e in equations.hidden[:3]] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    for index, equation in enumerate(equations.hidden):
        (term,) = equation.terms
        assert isinstance(term.map, Conv) and term.source == index - 1
        assert equation.phi.name == "relu"
        assert equation.adjust is not None and equation.adjust.name.endswith("bias")
        assert equation.channel_bias is not None
    last = [e for e in equations.hidden if e.name.endswith("conv2")]
    assert [[s.source for s in e.fixed] for e in last] == [[2 * k] for k in range(6)]
    shortcut = last[2].fixed[0].map  # drops every second row and column, pads channels
    assert isinstance(shortcut, Gather) and int((shortcut.index < 0).sum()) == shortcut.rows // 2
    (term,) = equations.output.terms
    assert isinstance(term.map, Dense) and term.fixed is not None and term.fixed.rows == 16


def test_sums_without_relu_that_feed_convolutions_are_states():
    equations = structured("resnet, shortcut convolutions")
    sums = [e for e in equations.hidden if e.phi.name == "identity"]
    assert [e.name for e in sums] == [f"layer{k}.0.conv2" for k in (1, 2, 3)]
    assert all(len(e.terms) == 2 and not e.fixed for e in sums)
    following = [e for e in equations.hidden if e.name.endswith("1.conv2")]
    assert all(len(e.terms) == 1 and len(e.fixed) == 1 for e in following)


def test_normalisation_before_a_padded_convolution_is_in_what_it_reads():
    equations = structured("norm before convolution")
    first, *_ = equations.hidden
    (term,) = first.terms
    assert term.offset is not None and term.fixed is not None
    assert first.channel_bias is not None  # zeros are padded after the normalisation


def test_pooling_is_the_activation_of_its_layer():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    first, *_ = capture(net.double(), images(2, (1, 6, 6))).hidden
    assert isinstance(first.phi, MaxPool) and (first.size, first.states) == (32, 8)
    s, t = torch.randn(2, 9, 32, dtype=torch.float64)
    assert ((first.phi(s) - first.phi(t)).abs().amax(1) <= (s - t).abs().amax(1)).all()


def test_shared_layers_are_marked():
    equations = structured("recurrent")
    parameters = [t.parameter for e in equations.hidden for t in e.terms]
    assert parameters.count("layers.0.weight") == 3
    assert equations.nonzeros == 36 * 5 + 25 + 20


def test_one_sample_shows_that_samples_are_mixed():
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(torch.relu(x - x.mean(0)))

    with pytest.raises(Exception, match="not a fixed function"):
        capture(Centred(), torch.randn(1, 6))


def test_full_sizes():
    net, u = seeded(ResNet20).float().eval(), images(2, (3, 32, 32)).float()
    equations = capture(net, u)
    assert equations.nonzeros == sum(p.numel() for p in net.parameters() if p.ndim > 1)
    assert len(equations.hidden) == 19 and equations.n == 188416
    deep = seeded(lambda: lenet(1, 28)).eval()
    u = images(2, (1, 28, 28))
    torch.testing.assert_close(capture(deep, u).replay(u)[1], deep(u), rtol=1e-12, atol=1e-12)


def test_kept_weights_are_counted_by_operation():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = MatrixPerChannel(3, 4, 4), MatrixPerChannel(3, 4, 4)
            self.last = nn.Linear(12, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.second(self.first(self.first(x)))
            return self.last(x.flatten(1))

    net = Twice().double()
    with torch.no_grad():
        net.first.weight[0] = 0
    equations = capture(net, images(2, (3, 4)))
    assert equations.kept_weights == {"first: matmul": 32, "second: matmul": 48}
    assert equations.nonzeros == 32 + 48 + 24 == nonzeros(equations)
    assert not structured("lenet").kept_weights


class Tokens(nn.Module):
    """Words that come as numbers, and what they mean together."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(9, 4), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify (m, 6)."""
        return self.last(torch.relu(self.first(self.table(x.long()))).mean(1))


def test_a_cast_to_whole_numbers_indexes_a_table(tmp_path):
    net = seeded(Tokens).double()
    words = torch.randint(9, (40, 6), generator=torch.Generator().manual_seed(0)).double()
    equations = capture(net, words)
    assert len(equations.kept) == 2
    # the table is read, not matched
    assert equations.nonzeros == 4 * 5 + 5 * 2
    for u in (words, words[:1], words[:2] + 0.4):
        torch.testing.assert_close(equations.replay(u)[1], net(u))
    model = simplicit.implicitize(net, words, sparsity=0.5, workers=1)
    assert int(sum(torch.count_nonzero(W) for W in model.parameters() if W.ndim > 1)) == 15
    torch.testing.assert_close(model.to_explicit()(words), model(words))
    copied = copy.deepcopy(net)
    model.load_into(copied)
    torch.testing.assert_close(copied(words), model(words))
    model.save(tmp_path / "words.safetensors")
    again = simplicit.load(tmp_path / "words.safetensors")
    assert torch.equal(again(words), model(words))


class Odd(nn.Module):
    """An operation between two layers."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
        self.table, self.between = nn.Embedding(9, 6), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify (m, 6)."""
        return self.last(self.between(self, torch.relu(self.first(x))))


@pytest.mark.parametrize(
    "between",
    [
        lambda net, h: h.gather(1, h.sort(1).indices),
        lambda net, h: h.gather(1, h.topk(6, 1)[1]),
        lambda net, h: h * (h > 0.3).to(h.dtype),
        lambda net, h: (h > 0.3).double() + h,
        lambda net, h: h.long().double() + h,
        lambda net, h: h.round(),
        lambda net, h: net.table(h.argmax(1)),
        lambda net, h: net.table((3 * h).to(torch.int64).clamp(0, 4) + 1).sum(1),
        lambda net, h: net.table(h.long().clamp(0, 8).view(-1, 3, 2)).sum((1, 2)),
    ],
    ids=["sort", "topk", "mask", "a mask added", "cut", "round", "argmax", "whole sums", "moved"],
)
def test_whole_numbers_and_masks_between_layers(between):
    net = seeded(lambda: Odd(between))
    u = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).double()
    equations = capture(net, u)
    for x in (u, 3 * u, u[:1]):
        torch.testing.assert_close(equations.replay(x)[1], net(x))


def test_operations_on_all_samples_at_once_are_refused_by_name(monkeypatch):
    def fails(*_):
        raise RuntimeError("no batching rule.\nand more")

    monkeypatch.setattr(type(capture(*small())), "replay", fails)
    with pytest.raises(InputError, match=r"\(no batching rule\): .*softmax are kept") as caught:
        capture(*small())
    assert "\n" not in str(caught.value)


def small() -> tuple[nn.Module, torch.Tensor]:
    """A network with an operation that is kept, and inputs."""
    return nn.Sequential(nn.Linear(3, 3), nn.Softmax(1), nn.Linear(3, 2)), torch.ones(2, 3)


def generator() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(6, 24), nn.ReLU(), nn.Unflatten(1, (6, 2, 2))),
        *(nn.ConvTranspose2d(6, 4, 4, 2, 1, bias=False, groups=2), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 2, 3, 2, 1, 1), nn.Tanh(), nn.Flatten(), nn.Linear(128, 3)),
    )


def volumes() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(2, 4, 3, padding=1, bias=False), nn.BatchNorm3d(4), nn.ReLU()),
        *(nn.Conv3d(4, 4, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)),
    )


@pytest.mark.parametrize(("make", "shape"), [(generator, (6,)), (volumes, (2, 4, 4, 4))])
def test_transposed_and_three_dimensional_convolutions_are_matched(make, shape, tmp_path):
    net, u = seeded(make).float(), images(60, shape).float()
    for module in net.modules():  # statistics that do something
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean, module.running_var = torch.randn(4), torch.rand(4) + 0.5
    net.eval()
    equations = capture(net, u)
    with torch.no_grad():
        y = net(u)
    assert float((equations.replay(u)[1] - y).abs().max()) <= 1e-5 * float(y.abs().max())
    assert not equations.kept
    weights = {name for name, p in net.named_parameters() if p.ndim > 1}
    assert {t.parameter for e in equations.layers for t in e.terms} == weights

    model = simplicit.implicitize(net, u, sparsity=0.5, workers=1)
    assert model.nonzeros == round(0.5 * model.reference_nonzeros)
    with torch.no_grad():
        x = model(u)
        assert float((x - y).square().mean()) < 0.2 * float((y - y.mean(0)).square().mean())
        torch.testing.assert_close(model.to_explicit()(u), x, rtol=1e-5, atol=1e-6)
        own = copy.deepcopy(net)
        model.load_into(own)
        torch.testing.assert_close(own(u), x, rtol=1e-5, atol=1e-5)
        model.save(tmp_path / "model")
        assert torch.equal(simplicit.load(tmp_path / "model")(u), x)


def test_a_transposed_convolution_used_twice_is_one_weight():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.last = nn.ConvTranspose1d(4, 4, 3, 1, 1, groups=2), nn.Linear(20, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.up(torch.relu(self.up(x)))).flatten(1))

    equations = capture(Twice().double(), images(2, (4, 5)))
    assert equations.nonzeros == nonzeros(equations) == 4 * 2 * 3 + 40


@pytest.mark.parametrize("transposed", [False, True])
def test_the_function_that_is_either_convolution_is_read(transposed):
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.last = nn.Parameter(torch.randn(4, 4, 3)), nn.Linear(20, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.convolution(x, self.weight, None, [1], [1], [1], transposed, [0], 1)
            return self.last(torch.relu(x).flatten(1))

    net, u = Either().double(), images(3, (4, 5))
    equations = capture(net, u)
    assert not equations.kept and equations.hidden[0].terms[0].parameter == "weight"
    assert isinstance(equations.hidden[0].terms[0].map, ConvTranspose if transposed else Conv)
    torch.testing.assert_close(equations.replay(u)[1], net(u))
