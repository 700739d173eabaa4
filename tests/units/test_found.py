import pytest
import torch
from torch import nn

from conv_networks import CONVOLUTIONAL, structured
from example_networks import Net, captured
from simplicit.capture.read import capture
from simplicit.units.found import STAYS, units_of

MATRICES = ["relu", "tanh, sigmoid", "concatenation", "residual", "tied", "batch norm", "shared"]


def found(net, *shape, without=()):
    equations = capture(net.eval(), torch.randn(2, *shape))
    return equations, units_of(equations, without)


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *MATRICES])
def test_every_unit_is_written_and_what_reads_the_inputs_or_writes_the_outputs_stays(name):
    equations = structured(name) if name in CONVOLUTIONAL else captured(name)
    units = units_of(equations)
    written = torch.cat(units.rows).unique()
    assert set(range(units.count)) <= set(written.tolist())
    assert bool((units.rows[-1] == STAYS).all())
    for e, features in zip(equations.layers, units.features, strict=True):
        for term, read in zip(e.terms, features, strict=True):
            assert term.source >= 0 or bool((read == STAYS).all())


def test_hidden_neurons_are_the_units_of_a_perceptron():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    _, units = found(net, 3)
    assert units.count == 9
    assert units.states[0].tolist() == [0, 1, 2, 3, 4]
    assert units.features[2][0].tolist() == [[5, 6, 7, 8]]


def test_a_channel_is_a_unit_at_all_of_its_places_and_behind_flattening():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)
    )
    _, units = found(net, 1, 6, 6)
    assert units.count == 3
    assert units.features[-1][0].tolist() == [[0] * 4 + [1] * 4 + [2] * 4]


def test_channels_of_a_residual_stream_are_one_unit_with_all_that_write_them():
    net = Net(
        lambda s, x: s.layers[2](s.layers[0](x) + s.layers[1](s.layers[0](x).relu())),
        nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2),
    )  # fmt: skip
    equations, units = found(net, 3)
    assert units.count == 4
    places = [k for k, e in enumerate(equations.hidden) if e.terms]
    first, second = (units.channels[k][0].tolist() for k in places)
    assert first == second == [0, 1, 2, 3]


def test_a_channel_with_a_kernel_of_its_own_goes_with_the_one_it_reads():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    _, units = found(net, 1, 5, 5)
    assert units.count == 4
    assert units.channels[0][0].tolist() == units.channels[1][0].tolist()


def test_steps_of_a_recurrence_share_their_units():
    equations = structured("recurrent")
    units = units_of(equations)
    named = {
        term.parameter: []
        for e in equations.layers for term in e.terms
    }  # fmt: skip
    for e, channels in zip(equations.layers, units.channels, strict=True):
        for term, own in zip(e.terms, channels, strict=True):
            named[term.parameter].append(own.tolist())
    assert any(len(uses) > 1 for uses in named.values())
    assert all(use == uses[0] for uses in named.values() for use in uses)


def test_heads_of_an_attention_and_its_inner_neurons_are_units():
    layer = nn.TransformerEncoderLayer(8, 4, 12, dropout=0.0, batch_first=True)
    equations, units = found(layer, 5, 8)
    assert units.count == 4 + 12
    heads = [own[0] for own, e in zip(units.channels, equations.layers, strict=True)
             if e.terms and len(e.terms[0].weight) == 24][0]  # fmt: skip
    assert heads.tolist() == [h for h in range(4) for _ in range(2)] * 3


def test_what_skipped_layers_read_and_write_stays():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    _, units = found(net, 3, without={(1, 0)})
    assert units.count == 0


def test_states_that_a_kept_operation_reads_stay():
    _, units = found(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 2)), 3)
    assert units.count == 0
