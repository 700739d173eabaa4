"""States that a model is trained towards: whose they are, and how much the outputs feel of them."""

import pytest
import torch
import torch.nn.functional as F

import kinds
from conv_networks import images, network, structured
from simplicit.capture.read import capture
from simplicit.equations.forward import all_states
from simplicit.model.implicit import ImplicitModel
from simplicit.recipe import Recipe
from simplicit.refine.states import TeacherStates, felt, states_and_outputs
from simplicit.units.found import units_of
from simplicit.units.narrow import narrow
from teachers import quick_fit, read, samples


@torch.no_grad()
@pytest.mark.parametrize("structure", ["layered", "triangular", "full"])
def test_states_and_outputs_are_those_of_the_model(structure):
    model = quick_fit(Recipe(sparsity=0.5, structure=structure)).model
    u = samples(20)
    states, y = states_and_outputs(model, u)
    found = model.equilibrium(u)
    torch.testing.assert_close(torch.cat([*states.values()], 1), found.states)
    torch.testing.assert_close(y, model.outputs(u))
    assert [*states] == [block.name for block in model.blocks]


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 2**26])  # states: a sample after the other, or all
def test_a_network_is_where_it_is_to_be(at_once, monkeypatch):
    monkeypatch.setattr("simplicit.refine.states.AT_ONCE", at_once)
    model, u = ImplicitModel.from_equations(structured("resnet, option A")), images(5)
    wanted = TeacherStates(network("resnet, option A"), model, u)
    states, _ = states_and_outputs(model, model.packed(u))
    assert float(wanted.distance(model.packed(u), states)) < 1e-9
    moved = {name: x + 0.1 for name, x in states.items()}
    assert float(wanted.distance(model.packed(u), moved)) > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["convolutions", "matrices"])
@pytest.mark.parametrize("seed", range(5))
def test_channels_that_stay_are_found(name, seed):
    net, u = kinds.network(name), kinds.inputs(name)
    equations = capture(net, u[:2])
    units, first = units_of(equations), equations.hidden[0]
    stay = torch.ones(units.count, dtype=torch.bool)
    own = units.states[0].unique()
    shuffled = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))]
    stay[shuffled[: 1 + seed % (len(own) - 1)]] = False
    model = ImplicitModel.from_equations(narrow(equations, units, stay).equations)
    given = model.packed(u)
    parts = all_states(equations, given).split([b.size for b in equations.blocks], 1)
    exact = {b.name: part for b, part in zip(equations.blocks, parts, strict=True)}
    states, _ = states_and_outputs(model, given)
    assert 0 < states[first.name].shape[1] < first.states
    wanted = TeacherStates(net, model, u)
    # layers with as many states as before read fewer; the others have what stays of the network's
    fewer = {name: x for name, x in states.items() if x.shape != exact[name].shape}
    assert float(wanted.distance(given, exact | fewer)) < 1e-9
    assert float(wanted.distance(given, exact | {n: x + 1 for n, x in fewer.items()})) > 1e-9


@torch.no_grad()
def test_errors_cost_the_outputs_what_the_distance_says():
    equations, u = read(), samples(400)
    squares = felt(equations, u.repeat(40, 1))  # classes are drawn: many, for little noise
    x = all_states(equations, u)
    states = list(x.split([b.size for b in equations.blocks], 1))[::-1]
    y = equations.output.preactivation([*states, u]).log_softmax(1)
    size, generator = 1e-3, torch.Generator().manual_seed(0)
    for k, equation in enumerate(equations.hidden):
        cost = 0.0
        for _ in range(20):
            moved = list(states)
            signs = torch.randint(2, states[k].shape, generator=generator) * 2 - 1
            moved[k] = states[k] + size * signs
            for later in range(k + 1, len(states)):
                e = equations.hidden[later]
                moved[later] = e.phi(e.preactivation([*moved[:later], u]))
            z = equations.output.preactivation([*moved, u]).log_softmax(1)
            cost += float(F.kl_div(z, y, log_target=True, reduction="batchmean")) / 20
        said = float(squares[equation.name].sum()) * size**2 / 2
        assert cost == pytest.approx(said, rel=0.15)
