import pytest
import torch
from torch import nn

from conv_networks import CONVOLUTIONAL, images, structured
from example_networks import captured, example, seeded
from simplicit.calibration import structure
from simplicit.calibration.rows import follow, rows_of
from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.equations.stacked import Stacked
from simplicit.equations.weighted_maps import Conv

MATRICES = ["relu", "concatenation", "residual", "tied", "batch norm"]
EVERY = [*CONVOLUTIONAL, *MATRICES, "relu, triangular", "residual, triangular", "relu, full"]


def network(name: str) -> StateEquations:
    if name in CONVOLUTIONAL:
        return structured(name)
    if name in MATRICES:
        return captured(name)
    name, form = name.rsplit(", ", 1)
    return structure.structured(captured(name), form)  # pyright: ignore[reportArgumentType]


def inputs(name, m):
    return images(m) if name in CONVOLUTIONAL else example(m)


def states(equations, u):
    X = []
    for e in equations.hidden:
        if isinstance(e.phi, Stacked):  # reads itself
            x = u.new_zeros(len(u), e.states)
            for _ in e.phi.blocks:
                x = e.phi(e.preactivation([x, u.flatten(1)]))
            X.append(x)
        else:
            X.append(e.phi(e.preactivation([*X, u.flatten(1)])))
    return [*X, u.flatten(1)]


@pytest.mark.parametrize("name", EVERY)
def test_rows_times_features_are_what_the_terms_add(name):
    equations, u = network(name), inputs(name, 3)
    sources = states(equations, u)
    for rows in rows_of(equations):
        equation = equations.layers[rows.index]
        terms = [equation.terms[t] for t in rows.terms]
        z = torch.stack([term.map(term.reads(sources[term.source])) for term in terms]).sum(0)
        found = rows.features(equation, sources) @ rows.weights(equation).mT
        torch.testing.assert_close(found, rows.targets(equation, z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *MATRICES])
def test_every_weight_is_solved_once(name):
    equations = network(name)
    every = equations.layers
    solved = sum(rows.weights(every[rows.index]).numel() for rows in rows_of(equations))
    assert solved + sum(equations.kept_weights.values()) == equations.nonzeros


@pytest.mark.parametrize("name", EVERY)
def test_weights_go_in_as_they_come_out_and_shifts_into_the_bias(name):
    equations, u = network(name), inputs(name, 2)
    sources = states(equations, u)
    for rows in rows_of(equations):
        equation = equations.layers[rows.index]
        W = rows.weights(equation)
        shift = torch.arange(W.shape[0] * W.shape[1], dtype=W.dtype).view(W.shape[:2])
        moved = rows.put(equation, 2 * W, shift)
        torch.testing.assert_close(rows.weights(moved), 2 * W)
        change = moved.preactivation(sources) - equation.preactivation(sources)
        expected = rows.features(equation, sources) @ W.mT + shift[:, None]
        torch.testing.assert_close(rows.targets(equation, change), expected)


@pytest.mark.parametrize("name", EVERY)
def test_channels_are_in_the_places_where_targets_finds_them(name):
    equations = network(name)
    for rows in rows_of(equations):
        equation = equations.layers[rows.index]
        groups, K, _ = rows.weights(equation).shape
        z = torch.randn(2, equation.size).double()
        found = rows.targets(equation, z).unflatten(1, (2, rows.positions(equation)))
        every = []
        for group in range(groups):
            for some in (slice(0, 1), slice(1, K)):
                places = rows.places(equation, group, some)
                assert torch.equal(z[:, places], found[group, ..., some].mT)
                every += places.flatten().tolist()
        assert sorted(every) == list(range(equation.size))  # every row of z is in one place


@pytest.mark.parametrize("name", EVERY)
def test_the_features_of_a_source_stand_together(name):
    equations = network(name)
    for rows in rows_of(equations):
        equation, parts = equations.layers[rows.index], rows.sources(equations)
        assert sum(size for _, size in parts) == rows.weights(equation).shape[2]
        assert {source for source, _ in parts} <= set(equation.sources)
        known = {term.source for t in rows.terms for term in [equation.terms[t]]}
        assert {source for source, _ in parts} <= known
        # another state moves no feature of another part
        sources = states(equations, inputs(name, 2))
        before = rows.features(equation, sources).split([size for _, size in parts], 2)
        for source in {source for source, _ in parts}:
            moved = [s + 1.0 if s is sources[source] else s for s in sources]
            after = rows.features(equation, moved).split([size for _, size in parts], 2)
            shared = name == "concatenation"  # one weight reads several sources
            for (origin, _), old, new in zip(parts, before, after, strict=True):
                assert shared or origin == source or torch.equal(old, new)


def test_layers_that_stand_in_one_equation_are_parts_of_their_own():
    equations = structure.structured(captured("relu"), "full")
    own, output = rows_of(equations)
    assert own.sources(equations) == [(0, 7), (0, 4), (0, 5), (-1, 6)]
    assert output.sources(equations) == [(0, 7), (0, 4), (0, 5), (-1, 6)]


def test_what_is_used_again_follows():
    equations = structured("recurrent")
    rows = rows_of(equations)
    assert [r.name for r in rows] == ["layers.0", "layers.0@1", "layers.2"]
    every, done = equations.layers, []
    for index, equation in enumerate(every):
        equation = follow(equation, done)
        for r in rows:
            if r.index == index:
                W = r.weights(equation)
                equation = r.put(equation, 3 * W, W.new_zeros(W.shape[:2]))
        done.append(equation)
    for before, after in zip(every, done, strict=True):
        for old, new in zip(before.terms, after.terms, strict=True):
            torch.testing.assert_close(new.weight, 3 * old.weight)


def test_a_shared_weight_follows_in_the_units_of_its_own_batch_norm():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.last = nn.Linear(3, 2)

        def forward(self, x):
            x = torch.relu(self.first(self.conv(x)))
            return self.last(self.second(self.conv(x)).mean((2, 3)))

    net = seeded(Twice).eval()
    equations = capture(net, images(2))
    (rows, _), second = rows_of(equations), equations.hidden[1]
    assert rows.index == 0
    first = equations.hidden[0]
    W = rows.weights(first)
    followed = follow(second, [rows.put(first, W * (W > 0), W.new_zeros(W.shape[:2]))])
    kept = second.terms[0].weight * (net.get_parameter("conv.weight") > 0)
    torch.testing.assert_close(followed.terms[0].weight, kept.detach())


def test_groups_of_a_convolution_have_their_own_features():
    net = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten(), nn.Linear(96, 2))
    )
    equations = capture(net.eval(), images(2))
    rows = rows_of(equations)[0]
    assert isinstance(equations.hidden[0].terms[0].map, Conv)
    V = rows.features(equations.hidden[0], [images(2).flatten(1)])
    assert V.shape == (3, 2 * 16, 9)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_some_positions_are_read_as_all_are(name):
    equations, u = structured(name), images(3)
    sources = states(equations, u)
    for rows in rows_of(equations):
        equation = equations.layers[rows.index]
        some = torch.arange(rows.positions(equation)).flip(0)[:5]
        V = rows.features(equation, sources).unflatten(1, (3, -1))[:, :, some].flatten(1, 2)
        assert torch.equal(rows.features(equation, sources, some), V)
