import os

import pytest
import torch

from conv_networks import CONVOLUTIONAL, images, structured
from example_networks import captured, example
from simplicit.calibration import frontier, structure
from simplicit.calibration.batches import batches
from simplicit.calibration.frontier import Frontier
from simplicit.calibration.rows import rows_of
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel
from simplicit.system import memory


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize(("own", "samples"), [(True, 3), (False, 1000)])
def test_both_networks_are_replayed_and_what_is_read_no_more_is_dropped(
    name, own, samples, monkeypatch
):
    monkeypatch.setattr(frontier, "SAMPLES", samples)  # short batches are joined up to so many
    equations = structured(name)
    every, u = equations.layers, images(5)
    Z, Y = equations.replay(u)
    both = Frontier(equations, batches(u, 3), own)
    assert both.m == 5
    for index, equation in enumerate(every):
        sources, targets = zip(*both.batches(), strict=True)
        torch.testing.assert_close(torch.cat(targets), [*Z, Y][index])
        found = torch.cat([equation.preactivation(s) for s in sources])
        torch.testing.assert_close(found, [*Z, Y][index])
        needed = {s for later in every[index:] for s in later.sources if s < index}
        assert {i for i, s in enumerate(sources[0][:-1]) if s.numel()} == needed - {-1}
        if index < len(equations.hidden):
            both.advance(equation)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("name", ["relu", "tanh, sigmoid", "residual", "shared"])
def test_an_equation_that_reads_itself_is_settled(name, own, monkeypatch):
    """The teacher's states are the network's; the model's are an equilibrium of its own."""
    monkeypatch.setattr(frontier, "SAMPLES", 3)
    network, u = captured(name), example()
    Z, Y = network.replay(u)
    equations = structure.structured(network, "full")
    (states,), asked = equations.hidden, []
    rows = rows_of(equations)[0]
    W = rows.weights(states) * 0.9
    model = rows.put(states, W, torch.full_like(W[..., 0], 0.1))

    def settle(equation, inputs):
        asked.append(equation)
        x = inputs.new_zeros(len(inputs), equation.states)
        for _ in range(len(Z) + 1):  # A is nilpotent here
            x = equation.phi(equation.preactivation([x, inputs]))
        return x

    both = Frontier(equations, batches(u, 3), own, settle)
    sources, targets = zip(*both.batches(), strict=True)
    z = torch.cat(Z[::-1], 1)
    torch.testing.assert_close(torch.cat(targets), z)
    # the rows read the teacher's states: its own weights give the targets
    torch.testing.assert_close(torch.cat([s[0] for s in sources]), states.phi(z))
    torch.testing.assert_close(torch.cat([states.preactivation(s) for s in sources]), z)
    both.advance(model)
    sources, targets = zip(*both.batches(), strict=True)
    torch.testing.assert_close(torch.cat(targets), Y)
    x = torch.cat([s[0] for s in sources])
    if own:
        torch.testing.assert_close(x, model.phi(model.preactivation([x, u])))
        changed = ImplicitModel.from_equations(
            type(equations)((model,), equations.output, (6,), equations.nonzeros)
        )
        found = torch.cat([equations.output.preactivation(s) for s in sources])
        torch.testing.assert_close(found, changed(u).detach())
        assert asked and all(equation is model for equation in asked)
    else:
        torch.testing.assert_close(x, states.phi(z))
        assert not asked


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("room", [0, 3000])
def test_states_on_disk_have_the_same_bits_and_their_space_is_given_back(
    own, room, monkeypatch, tmp_path
):
    equations, u = structured("resnet, option A"), images(5)
    monkeypatch.setattr(frontier, "SAMPLES", 3)
    there = Frontier(equations, batches(u, 3), own)
    files = len(os.listdir("/proc/self/fd"))
    inputs = batches((part.clone() for part in u.split(3)), 3, in_memory=0)
    away = Frontier(equations, inputs, own, folder=tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())  # their files have no names
    for index, equation in enumerate(equations.layers):
        for (one, z), (two, same) in zip(there.batches(), away.batches(), strict=True):
            assert torch.equal(z, same)
            assert all(torch.equal(one[i], two[i]) for i in equation.sources)
        if index < len(equations.hidden):
            monkeypatch.setattr(frontier, "IN_MEMORY", 2**30)
            there.advance(equation)
            monkeypatch.setattr(frontier, "IN_MEMORY", room)
            away.advance(equation)
    assert len(os.listdir("/proc/self/fd")) > files
    del away, inputs
    assert len(os.listdir("/proc/self/fd")) == files


def test_states_that_do_not_fit_on_the_disk_are_refused(monkeypatch, tmp_path):
    equations = structured("resnet, option A")
    monkeypatch.setattr(frontier, "IN_MEMORY", 0)
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 9}))
    with pytest.raises(InputError, match=r"states of 5 .*needed on disk, .*GB free in"):
        Frontier(equations, batches(images(5), 3), own=True, folder=tmp_path)


def test_states_that_do_not_fit_are_refused_before_they_are_computed(monkeypatch):
    equations = structured("resnet, option A")
    asked = []
    monkeypatch.setattr(memory, "require", lambda size, what, device: asked.append(size))
    Frontier(equations, batches(images(5), 3), own=True)
    assert asked == [5 * 8 * 144 * (2 * 3 + 1)]
    monkeypatch.undo()
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("M", (), {"available": 9}))
    with pytest.raises(InputError, match="states of 5 calibration inputs"):
        Frontier(equations, batches(images(5), 3), own=True)
