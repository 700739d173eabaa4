import pytest
import torch
from torch import nn

from conv_networks import CONVOLUTIONAL, images, structured
from example_networks import seeded
from simplicit.calibration.rows import channels, follow
from simplicit.capture.read import capture
from simplicit.equations.weighted_maps import Conv


def states(equations, u):
    Z, _ = equations.replay(u)
    return [*(e.phi(z) for e, z in zip(equations.hidden, Z, strict=True)), u.flatten(1)]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_rows_times_features_are_what_the_terms_add(name):
    equations, u = structured(name), images(3)
    every, sources = (*equations.hidden, equations.output), states(equations, u)
    for rows in channels(equations):
        equation = every[rows.index]
        terms = [equation.terms[t] for slot in rows.slots for t in slot]
        z = torch.stack([term.map(term.reads(sources[term.source])) for term in terms]).sum(0)
        found = rows.features(equation, sources) @ rows.weights(equation).mT
        torch.testing.assert_close(found, rows.targets(equation, z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_weight_is_solved_once(name):
    equations = structured(name)
    every = (*equations.hidden, equations.output)
    solved = sum(rows.weights(every[rows.index]).numel() for rows in channels(equations))
    kept = sum(getattr(e.phi, "nnz", 0) for e in equations.hidden)
    assert solved + kept == equations.nonzeros


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_weights_go_in_as_they_come_out_and_shifts_into_the_bias(name):
    equations, u = structured(name), images(2)
    every, sources = (*equations.hidden, equations.output), states(equations, u)
    for rows in channels(equations):
        equation = every[rows.index]
        W = rows.weights(equation)
        shift = torch.arange(W.shape[0] * W.shape[1], dtype=W.dtype).view(W.shape[:2])
        moved = rows.put(equation, 2 * W, shift)
        torch.testing.assert_close(rows.weights(moved), 2 * W)
        change = moved.preactivation(sources) - equation.preactivation(sources)
        expected = rows.features(equation, sources) @ W.mT + shift[:, None]
        torch.testing.assert_close(rows.targets(equation, change), expected)


def test_what_is_used_again_follows():
    equations = structured("recurrent")
    rows = channels(equations)
    assert [r.name for r in rows] == ["layers.0", "layers.0@1", "layers.2"]
    every, done = (*equations.hidden, equations.output), []
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
    (rows, _), second = channels(equations), equations.hidden[1]
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
    rows = channels(equations)[0]
    assert isinstance(equations.hidden[0].terms[0].map, Conv)
    V = rows.features(equations.hidden[0], [images(2).flatten(1)])
    assert V.shape == (3, 2 * 16, 9)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_some_positions_are_read_as_all_are(name):
    equations, u = structured(name), images(3)
    sources = states(equations, u)
    for rows in channels(equations):
        equation = equations.layers[rows.index]
        some = torch.arange(rows.positions(equation)).flip(0)[:5]
        V = rows.features(equation, sources).unflatten(1, (3, -1))[:, :, some].flatten(1, 2)
        assert torch.equal(rows.features(equation, sources, some), V)
