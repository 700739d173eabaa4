"""`to_explicit` in the forms that torch itself offers: torch.export and TorchScript."""

import pytest
import torch
from torch import Tensor, nn

from interfaces import INTERFACES, called, leaves, network
from random_models import implicit_model, inputs
from simplicit.capture.read import capture
from simplicit.model.implicit import ImplicitModel

# torch's own words on TorchScript, and on every graph that it scripts
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning"),
]

KINDS = [
    "ids and a mask",
    "gathered",
    "windows",
    "tuple of heads",
    "LSTM cells",
]
"""Between them: names, whole numbers, kept operations, convolutions, several inputs and outputs."""


def given(name: str) -> tuple[Tensor, ...]:
    some = INTERFACES[name][1]()
    some = tuple(some.values()) if isinstance(some, dict) else some
    return tuple(part[:5] for part in (some if isinstance(some, tuple) else (some,)))


def exported(module: nn.Module, u: tuple[Tensor, ...]) -> nn.Module:
    batch = ({0: torch.export.Dim("batch")},) * len(u)
    return torch.export.export(module, u, dynamic_shapes=batch).module()


@pytest.mark.parametrize("name", KINDS)
def test_both_forms_predict_the_same_for_any_number_of_samples(name):
    net, u = network(name), given(name)
    model = ImplicitModel.from_equations(capture(net, INTERFACES[name][1]()))
    explicit = model.to_explicit()
    expected = leaves(called(model, INTERFACES[name][1](), slice(3)))
    for form in (exported(explicit, u), torch.jit.script(explicit)):
        found = leaves(form(*(part[:3] for part in u)))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("structure", ["triangular", "layered"])
def test_models_of_matrices_are_exported_with_their_zeros(structure):
    model = implicit_model(structure, density=0.5)
    explicit, u = model.to_explicit(), inputs(model)
    for form in (exported(explicit, (u[:5],)), torch.jit.script(explicit)):
        torch.testing.assert_close(form(u), model(u), rtol=1e-12, atol=1e-12)
        weights = [p for name, p in form.named_parameters() if name.endswith("weight")]
        assert sum(int(p.count_nonzero()) for p in weights) == model.nonzeros
