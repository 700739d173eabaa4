"""Fine-tuning comes nearer to the teacher and keeps support, certificate and its input."""

import copy

import pytest
import torch
from torch import Tensor

import simplicit
from conv_networks import images, network, structured
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel
from simplicit.recipe import Recipe
from simplicit.refine.finetune import STATES, finetune
from simplicit.refine.states import TeacherStates, states_and_outputs
from teachers import quick_fit, samples, teacher


def distance(model: torch.nn.Module) -> float:
    u = samples()
    with torch.no_grad():
        wanted = teacher()(u).softmax(1)
        return float(torch.nn.functional.cross_entropy(model(u), wanted))


@pytest.mark.parametrize("structure", ["triangular", "full"])
def test_it_comes_nearer_on_the_same_support(structure):
    kappa = 0.5 if structure == "full" else Recipe().kappa
    model = quick_fit(Recipe(sparsity=0.6, structure=structure, kappa=kappa)).model
    before = copy.deepcopy(model.state_dict())
    net = teacher()
    tuned = finetune(model, net, samples(), epochs=20, lr=3e-3)
    assert distance(tuned) < distance(model)
    for name, old in before.items():
        new: Tensor = tuned.state_dict()[name]
        assert torch.equal(model.state_dict()[name], old)
        assert name.startswith("biases") or not new[old == 0].any()
    assert tuned.certificate.well_posed
    if structure == "full":
        assert tuned.certificate.norm <= model.certificate.norm * (1 + 1e-9)


def test_the_same_seed_gives_the_same_bits():
    model = quick_fit(Recipe(sparsity=0.6)).model
    one, two = (finetune(model, teacher(), samples(), epochs=2) for _ in range(2))
    for first, second in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(first, second)
    none = finetune(model, teacher(), samples(), epochs=0)
    for first, second in zip(none.parameters(), model.parameters(), strict=True):
        assert torch.equal(first, second)


def test_steps_that_are_too_long_leave_the_model_as_it_was(capsys):
    model = quick_fit(Recipe(sparsity=0.6)).model
    tuned = finetune(model, teacher(), samples(), epochs=2, lr=100.0)
    assert "left as it was" in capsys.readouterr().err
    for first, second in zip(tuned.parameters(), model.parameters(), strict=True):
        assert torch.equal(first, second) and first is not second


@pytest.mark.parametrize("states", [0.0, STATES])
def test_networks_of_convolutions_are_tuned_on_their_support_too(states):
    net, u = network("in place, reused"), images(40)
    model = simplicit.implicitize(net, u, sparsity=0.6)
    tuned = finetune(model, net, u, epochs=10, batch_size=10, states=states)
    teacher = TeacherStates(net, model, u)

    def away(some: ImplicitModel) -> float:
        with torch.no_grad():
            own, _ = states_and_outputs(some, some.packed(u))
            far = states * teacher.distance(some.packed(u), own)
            return float(torch.nn.functional.cross_entropy(some(u), net(u).softmax(1)) + far)

    assert away(tuned) < away(model)
    assert tuned.nonzeros <= model.nonzeros
    for old, new in zip(model.learned, tuned.learned, strict=True):
        assert not new[old == 0].any()


def test_operations_that_are_kept_have_no_worst_case():
    net, u = network("group norm"), images(10)
    model = ImplicitModel.from_equations(structured("group norm"))
    with pytest.raises(InputError, match="no bounds are known of 1: group_norm"):
        finetune(model, net, u, eps=0.1)


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        ({"states": -1.0}, "a finite number, at least 0"),
        ({"states": float("nan")}, "a finite number, at least 0"),
        ({"states": 1.0, "eps": 0.1}, "accepted with eps is None or 0"),
    ],
)
def test_weights_of_states_that_are_none_are_refused(options, accepted):
    model = quick_fit(Recipe(sparsity=0.6)).model
    with pytest.raises(InputError, match=accepted):
        finetune(model, teacher(), samples(), **options)


def test_networks_of_tokens_are_tuned_too():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        *(torch.nn.Embedding(9, 6), torch.nn.Linear(6, 5), torch.nn.ReLU()),
        *(torch.nn.Flatten(), torch.nn.Linear(20, 3)),
    ).eval()
    u = torch.randint(9, (60, 4))
    model = simplicit.implicitize(net, u, sparsity=0.6)
    tuned = finetune(model, net, u, epochs=3, states=10.0)
    assert tuned.nonzeros <= model.nonzeros
    assert any(not torch.equal(a, b) for a, b in zip(tuned.learned, model.learned, strict=True))
