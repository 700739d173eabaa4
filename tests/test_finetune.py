"""Fine-tuning comes nearer to the teacher and keeps support, certificate and its input."""

import copy

import pytest
import torch
from torch import Tensor

from simplicit.finetune import finetune
from simplicit.recipe import Recipe
from teachers import quick_fit, samples, teacher


def distance(model: torch.nn.Module) -> float:
    u = samples()
    with torch.no_grad():
        wanted = teacher()(u).softmax(1)
        return float(torch.nn.functional.cross_entropy(model(u), wanted))


@pytest.mark.parametrize("structure", ["triangular", "full"])
def test_it_comes_nearer_on_the_same_support(structure):
    model = quick_fit(Recipe(sparsity=0.6, structure=structure, kappa=0.5)).model
    before = copy.deepcopy(model.state_dict())
    net = teacher()
    tuned = finetune(model, net, samples(), epochs=20, lr=3e-3)
    assert distance(tuned) < distance(model)
    for name, old in before.items():
        new: Tensor = tuned.state_dict()[name]
        assert torch.equal(model.state_dict()[name], old)
        assert name in ("b", "d") or not new[old == 0].any()
    assert tuned.certificate.well_posed
    if structure == "full":
        assert tuned.certificate.norm <= model.certificate.norm * (1 + 1e-9)


def test_the_same_seed_gives_the_same_bits():
    model = quick_fit(Recipe(sparsity=0.6)).model
    one, two = (finetune(model, teacher(), samples(), epochs=2) for _ in range(2))
    assert torch.equal(one.B, two.B)
    none = finetune(model, teacher(), samples(), epochs=0)
    assert torch.equal(none.B, model.B)
