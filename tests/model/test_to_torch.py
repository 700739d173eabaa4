import io
from dataclasses import replace

import pytest
import torch
from torch import fx, nn

from random_models import MIXED, PHIS, implicit_model, inputs, same
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel


@pytest.mark.parametrize("structure", ["triangular", "layered"])
@pytest.mark.parametrize("blocks", [*map(same, PHIS), MIXED])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_are_those_of_the_model(structure, blocks, bias):
    model = implicit_model(structure, blocks, bias=bias, density=0.6)
    u = inputs(model)
    torch.testing.assert_close(model.to_explicit()(u), model(u), rtol=1e-12, atol=1e-12)


def test_a_chain_is_a_sequential_with_the_teachers_state_dict():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    first, second, last = (net.get_submodule(name) for name in "024")
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    assert isinstance(last, nn.Linear)
    A, B, C = torch.zeros(9, 9), torch.zeros(9, 6), torch.zeros(2, 9)
    A[:4, 4:], B[4:], C[:, :4] = second.weight.data, first.weight.data, last.weight.data
    tanh = PHIS[3]
    model = ImplicitModel(
        *(A, B, C, torch.zeros(2, 6), torch.cat([second.bias, first.bias]), last.bias),
        blocks=[type(MIXED[0])("2", 4, tanh), type(MIXED[0])("0", 5, tanh)],
        structure="layered",
        input_shape=(6,),
        reference_nonzeros=58,
    )
    explicit = model.to_explicit()
    assert isinstance(explicit, nn.Sequential)
    assert [type(module) for module in explicit] == [type(module) for module in net]
    own = {name.replace("4.", "output."): value for name, value in net.state_dict().items()}
    torch.testing.assert_close(dict(explicit.state_dict()), own, rtol=0, atol=0)
    u = torch.randn(5, 6)
    torch.testing.assert_close(model(u), net(u))


def test_skip_connections_become_a_graph_of_torch_modules():
    model = implicit_model("triangular")
    explicit = model.to_explicit()
    assert isinstance(explicit, fx.GraphModule)
    kinds = {type(module).__module__.split(".")[0] for module in explicit.children()}
    assert kinds == {"torch"}
    # Layer k sees all earlier layers and the input.
    widths = [m.in_features for m in explicit.children() if isinstance(m, nn.Linear)]
    assert sorted(widths) == [6, 6 + 5, 6 + 5 + 4, 6 + 5 + 4 + 3]
    assert "torch.cat" in explicit.code


def test_layers_are_as_wide_as_what_they_use():
    model = implicit_model("triangular")
    with torch.no_grad():
        model.equations.hidden[2].terms[0].weight.zero_()  # fc3 no longer sees fc1
        model.equations.output.terms[-1].weight.zero_()  # D
    explicit = model.to_explicit()
    widths = [m.in_features for m in explicit.children() if isinstance(m, nn.Linear)]
    assert sorted(widths) == [6, 5 + 6, 4 + 6, 3 + 4 + 5][0:1] + sorted([5 + 6, 4 + 6, 3 + 4 + 5])
    u = inputs(model)
    torch.testing.assert_close(explicit(u), model(u), rtol=1e-12, atol=1e-12)


def test_weights_are_copies_with_the_same_zeros():
    model = implicit_model("triangular", density=0.5)
    explicit = model.to_explicit()
    linears = [m for m in explicit.children() if isinstance(m, nn.Linear)]
    assert sum(int(m.weight.count_nonzero()) for m in linears) == model.nonzeros
    before = model.nonzeros
    with torch.no_grad():
        linears[0].weight.zero_()
    assert model.nonzeros == before


@pytest.mark.parametrize("structure", ["triangular", "layered"])
def test_a_stored_module_does_not_mention_simplicit(structure):
    model = implicit_model(structure)
    explicit, file = model.to_explicit(), io.BytesIO()
    torch.save(explicit, file)
    assert b"simplicit" not in file.getvalue()
    file.seek(0)
    again = torch.load(file, weights_only=False)
    u = inputs(model)
    assert torch.equal(again(u), explicit(u))


def test_an_empty_layer_is_still_a_layer():
    model = implicit_model("layered")
    with torch.no_grad():
        model.equations.hidden[2].terms[0].weight.zero_()
    u = inputs(model)
    torch.testing.assert_close(model.to_explicit()(u), model(u), rtol=1e-12, atol=1e-12)


def test_no_random_numbers_are_consumed():
    model = implicit_model("triangular")
    state = torch.get_rng_state()
    model.to_explicit()
    assert torch.equal(torch.get_rng_state(), state)


def test_full_is_refused_with_the_reason():
    with pytest.raises(InputError, match="feeds states back"):
        implicit_model("full").to_explicit()


def test_layers_may_have_any_names():
    blocks = tuple(
        replace(block, name=name) for block, name in zip(MIXED, ["x y", "x y", "1"], strict=True)
    )
    model = implicit_model("triangular", blocks)
    u = inputs(model)
    torch.testing.assert_close(model.to_explicit()(u), model(u), rtol=1e-12, atol=1e-12)
