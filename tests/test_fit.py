"""implicitize(): budgets to the unit, every structure's promise, and the same bits again."""

import copy
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import simplicit
from kinds import NETWORKS, same
from kinds import inputs as of_kind
from kinds import network as network_of
from kinds import quick_fit as fit_kind
from simplicit import fit
from simplicit.calibration.ball import RowConstraint
from simplicit.errors import InputError
from simplicit.fit import Fit
from simplicit.recipe import Recipe
from simplicit.refine import robustify
from simplicit.solvers import Settings
from teachers import N0, PHIS, quick_fit, read, samples, teacher

STRUCTURES = ("triangular", "layered", "full")


def solved(result: Fit) -> bool:
    return {row["status"] for row in result.rows} == {"solved"}


def unexplained(model: nn.Module, net: nn.Module) -> float:
    """Part of the variance of the teacher's outputs, on other samples, that the model misses."""
    u = samples(300, seed=5)
    y = net(u).detach()
    with torch.no_grad():
        return float((model(u) - y).square().sum() / (y - y.mean(0)).square().sum())


@pytest.mark.parametrize(
    ("phi", "structure"),
    [
        ("relu", "triangular"),
        ("leaky relu", "layered"),
        ("tanh", "full"),
        ("sigmoid", "triangular"),
    ],
)
def test_a_budget_is_met_to_the_unit(phi, structure):
    result = quick_fit(Recipe(sparsity=0.4, structure=structure), phi)
    model, N = result.model, round(0.6 * N0)
    assert model.nonzeros == N and model.sparsity == 1 - N / N0
    assert model.structure == structure and solved(result)
    assert model.certificate.norm <= 0.99 * (1 + 1e-9)
    assert model.equilibrium(samples()).converged.all()
    assert unexplained(model, teacher(phi)) < 0.6


@cache
def predicted(recipe: Recipe) -> Tensor:
    """By the fit of a teacher without biases."""
    return fit.fit(teacher(bias=False), samples(), recipe).model(samples())


@pytest.mark.parametrize("unit", [2.0**-40, 2.0**40])
@pytest.mark.parametrize("of", ["inputs", "states"])
def test_units_of_inputs_and_states_cancel(unit, of):
    net, u, recipe = teacher(bias=False), samples(), Recipe(sparsity=0.6)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight /= unit
        if of == "states":
            other[0].weight *= unit**2
            other[-1].weight /= unit
    v = u * unit if of == "inputs" else u
    model = fit.fit(other, v, recipe).model
    assert model.nonzeros == round(0.4 * N0)
    torch.testing.assert_close(model(v), predicted(recipe), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("size", [1e3, 1e12])
def test_outputs_that_are_far_apart_are_matched_as_others_are(size):
    net, u, recipe = teacher(), samples(), Recipe(sparsity=0.4)
    with torch.no_grad():
        for parameter in net[-1].parameters():
            parameter *= size
    model = fit.fit(net, u, recipe).model
    assert model.nonzeros == round(0.6 * N0) and unexplained(model, net) < 0.6


@pytest.mark.parametrize("sparsity", [0.0, 0.999])
def test_any_budget(sparsity):
    model = quick_fit(Recipe(sparsity=sparsity)).model
    assert model.nonzeros == round((1 - sparsity) * N0)
    assert torch.isfinite(model(samples())).all()


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("bias", [True, False])
def test_hardly_penalised_it_is_nearly_the_teacher(structure, bias):
    result = quick_fit(Recipe(alpha=1e-6, structure=structure, bias=bias), bias=bias)
    assert solved(result) and result.rows[0]["relative_gap"] <= 1e-4
    assert unexplained(result.model, teacher(bias=bias)) < 1e-3
    assert (result.model.b is None) == (not bias)
    # more weights than the teacher where the structure has room for them
    assert (result.model.sparsity < 0) == (structure != "layered")


@pytest.mark.parametrize("structure", ["triangular", "layered"])
def test_to_explicit_computes_the_same(structure):
    model = quick_fit(Recipe(structure=structure, sparsity_ratio=40.0), "leaky relu").model
    torch.testing.assert_close(model.to_explicit()(samples()), model(samples()))


@pytest.mark.parametrize(("phi", "kappa"), [*((phi, 0.3) for phi in PHIS), ("relu", 0.99)])
def test_a_full_model_keeps_its_ball(phi, kappa):
    model = quick_fit(Recipe(structure="full", kappa=kappa), phi).model
    certificate = model.certificate
    assert model.omega is not None
    assert certificate.well_posed and certificate.method == "weighted norm"
    assert certificate.norm <= kappa * (1 + 1e-9)
    assert model.equilibrium(samples(300, seed=7)).converged.all()


@pytest.mark.parametrize(
    ("options", "phi"), [({"structure": "full"}, "relu"), ({"constraint": "row"}, "tanh")]
)
def test_elimination_stays_in_the_ball_at_the_exact_budget(options, phi):
    recipe = Recipe(sparsity=0.6, kappa=0.6, **options)
    result = quick_fit(recipe, phi)
    model = result.model
    constraint = RowConstraint(read(phi), recipe.constraint, 0.6)
    norms = model.A.to_dense().abs().double() @ constraint.omega
    if recipe.constraint == "row":
        norms += model.B.to_dense().abs().sum(1)
    assert (norms <= 0.6 * constraint.omega * (1 + 1e-6)).all() and norms.any()
    assert model.nonzeros == round(0.4 * N0) and not any(
        "sweep" in row["stage"] for row in result.budgets
    )
    assert all(row["bound"] <= row["objective"] for row in result.rows)
    assert unexplained(model, teacher(phi)) < 0.6


def test_robustness_has_smaller_norms_the_less_the_match_weighs():
    norms = []
    for lambda1 in (3.0, 30.0):
        recipe = Recipe(objective="robustness", structure="full", lambda1=lambda1)
        result = quick_fit(recipe, "tanh")
        assert solved(result)
        model = result.model
        A, B, C, D = (part.to_dense() for part in (model.A, model.B, model.C, model.D))
        rows = torch.cat([torch.cat([A, B], 1), torch.cat([C, D], 1)])
        norms.append(float(rows.detach().abs().sum(1).sum()))
        assert model.equilibrium(samples()).converged.all()
    assert 0 < norms[0] < norms[1]
    assert unexplained(model, teacher("tanh")) < 0.1


def test_robustness_to_a_budget():
    result = fit_kind("matrices", Recipe(objective="robustness", sparsity=0.6))
    assert result.model.nonzeros == round(0.4 * result.model.reference_nonzeros)


def test_the_papers_preset_through_implicitize():
    net = teacher(bias=False)
    model = simplicit.implicitize(net, samples(), preset="paper", kappa=0.9, alpha=1e-6)
    assert model.structure == "full" and model.b is None and model.d is None
    assert model.certificate.norm <= 0.9 * (1 + 1e-9)
    assert model.equilibrium(samples()).converged.all()
    assert unexplained(model, net) < 1e-2


def test_auto_is_triangular_and_inputs_keep_their_shape():
    net = nn.Sequential(nn.Flatten(), *teacher()).double()
    u = samples().double().reshape(-1, 2, 3)
    model = simplicit.implicitize(net, u, sparsity=0.5)
    assert model.structure == "triangular" and model.input_shape == (2, 3)
    assert model(u).dtype == torch.float64 and model(u).shape == (200, 3)
    assert (model.nonzeros, model.reference_nonzeros) == (N0 // 2, N0)


def test_the_teacher_stays_as_it_was():
    net = nn.Sequential(*teacher(), nn.Dropout(0.5)).train()
    net[0].requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    state = torch.random.get_rng_state()
    simplicit.implicitize(net, samples(), sparsity=0.5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and all(module.training for module in net.modules())
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True, True, True]
    assert all(p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("structure", ["triangular", "full"])
def test_the_same_bits_again_whatever_the_number_of_workers(structure, monkeypatch):
    # several tiles of rows in every layer
    monkeypatch.setattr("simplicit.solvers.loop.DEFAULTS", Settings(tile=3))
    monkeypatch.setattr("simplicit.system.threads.available", lambda: 2)
    recipe = Recipe(structure=structure, alpha=5.0)
    one, again, two = (quick_fit(recipe, workers=workers) for workers in (1, 1, 2))
    assert same(one.model, again.model) and same(one.model, two.model)
    assert one.rows == again.rows == two.rows


def test_any_source_of_batches_will_do():
    u = samples()
    recipe = Recipe()
    whole = quick_fit(recipe, inputs=u, batch_size=64).model
    for source in (
        [u[:64], u[64:128], u[128:192], u[192:]],
        DataLoader(TensorDataset(u, torch.zeros(len(u))), batch_size=64),
    ):
        assert same(whole, quick_fit(recipe, inputs=source).model)


def test_inputs_are_passed_over_once():
    halves = (half for half in samples().split(100))
    whole = quick_fit(Recipe(), batch_size=100).model
    assert same(quick_fit(Recipe(), inputs=halves).model, whole)


def spoilt(value: float) -> Tensor:
    u = samples()
    u[17, 2] = value
    return u


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        (spoilt(float("nan")), {}, "calibration batch 0: sample 17 has NaN or Inf entries"),
        (spoilt(float("inf")), {}, "calibration batch 0: sample 17 has NaN or Inf entries"),
        (samples(0), {}, "calibration inputs are empty: accepted is at least one sample"),
        ([], {}, "calibration inputs are empty: accepted is at least one sample"),
        (samples().int(), {}, r"inputs \(m, 6\) int32: .*images are floating point"),
        (samples()[:, :4], {}, r"does not run on inputs \(m, 4\)"),
        (samples(), {"sparsty": 0.5}, "unknown option 'sparsty': accepted are objective, sparsity"),
        (samples(), {"sparsity": 1.0}, "sparsity=1.0: accepted is"),
        (samples(), {"preset": "best"}, "preset 'best': accepted are seed, paper, acml2025"),
        (samples(), {"device": "nowhere"}, "device 'nowhere' is not available here"),
        (samples(), {"device": "meta"}, "device 'meta' is not available here: cpu always is"),
    ],
)
def test_what_cannot_be_used_is_one_line(inputs, options, says):
    with pytest.raises(InputError, match=says) as error:
        simplicit.implicitize(teacher(), inputs, **options)
    assert "\n" not in str(error.value)


def test_what_has_no_type_that_is_accepted_is_one_line():
    # in a process of its own: here every call is checked against its annotations
    code = """
import simplicit, torch
net, u = torch.nn.Linear(2, 2), torch.rand(4, 2)
for net, options in (({}, {}), (net, {"sparsity": "half"}), (net, {"sweeps": 4.5})):
    try:
        simplicit.implicitize(net, u, **options)
    except simplicit.InputError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "the network is a dict: accepted is a torch.nn.Module",
        "sparsity='half': accepted is a number",
        "sweeps=4.5: accepted is None, 0, or a whole number, at least 4",
    ]


def test_a_teacher_with_nan_is_named():
    net = teacher()
    with torch.no_grad():
        next(net.parameters())[0, 0] = float("nan")
    with pytest.raises(InputError, match="parameter '0.weight' has NaN or Inf entries"):
        simplicit.implicitize(net, samples())


def test_one_sample_is_enough():
    model = quick_fit(Recipe(alpha=1e-6), inputs=samples(1)).model
    torch.testing.assert_close(model(samples(1)), teacher()(samples(1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", NETWORKS)
def test_neither_workers_nor_the_named_device_change_a_bit(kind, monkeypatch):
    monkeypatch.setattr("simplicit.system.threads.available", lambda: 2)
    recipe = Recipe(sparsity=0.5)
    one = fit_kind(kind, recipe)
    others: list[dict[str, Any]] = [{"workers": 2}, {"device": "cpu"}]
    for options in others:
        other = fit_kind(kind, recipe, **options)
        assert same(one.model, other.model) and one.rows == other.rows


def test_another_seed_changes_what_is_random():
    recipe = Recipe(sparsity=0.5)  # the outputs are probed in random directions
    assert not same(fit_kind("matrices", recipe).model, fit_kind("matrices", recipe, seed=1).model)
    recipe = Recipe(sparsity=0.5, sensitivity=False)  # all outputs, one after the other
    assert same(fit_kind("matrices", recipe).model, fit_kind("matrices", recipe, seed=1).model)


def test_kept_weights_that_exceed_the_budget_are_refused_with_the_figures():
    with pytest.raises(InputError) as error:
        fit_kind("kept operations", Recipe(sparsity=0.9))
    assert str(error.value) == (
        "sparsity=0.9: the budget is 4 of 40 weights, but 8 are in operations that are kept as "
        "they are: 2: matmul (8); accepted is at most 0.8"
    )


@pytest.mark.parametrize(("sparsity", "said"), [(0.5, True), (None, False)])
def test_kept_weights_are_named_where_they_are_a_notable_part(sparsity, said, capsys):
    fit_kind("kept operations", Recipe(sparsity=sparsity))
    line = "8 of the 20 weights in the budget are in operations that cannot be read as linear maps"
    assert capsys.readouterr().err.count(line) == said


def test_robustness_alone_is_the_level_of_one_point_with_half_of_the_weights(monkeypatch):
    monkeypatch.setattr(robustify, "LEVELS", 2)
    net, u = network_of("matrices"), of_kind("matrices")
    alone = simplicit.implicitize(net, u, objective="robustness")
    spelt: dict[str, Any] = {"objective": "robustness", "sparsity": 0.5, "robustness": 0.01}
    assert same(alone, simplicit.implicitize(net, u, **spelt))
    other = simplicit.implicitize(net, u, objective="robustness", sparsity=0.3)
    spelt["sparsity"] = 0.3
    assert same(other, simplicit.implicitize(net, u, **spelt))
    first = simplicit.implicitize(net, u, objective="robustness", preset="seed", lambda1=3.0)
    assert same(first, fit_kind("matrices", Recipe(objective="robustness", lambda1=3.0)).model)
