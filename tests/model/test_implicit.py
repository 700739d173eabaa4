import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from random_models import MIXED, PHIS, contraction, implicit_model, inputs, same, strictly_upper
from simplicit.equations.stacked import Block, Stacked
from simplicit.errors import InputError
from simplicit.model.equilibrium import NotConvergedError, Status
from simplicit.model.implicit import ImplicitModel

STRUCTURES = ["full", "triangular", "layered"]


def matrices() -> dict:
    A, B, C, D = torch.zeros(12, 12), torch.ones(12, 6), torch.ones(2, 12), torch.ones(2, 6)
    return {"A": A, "B": B, "C": C, "D": D}


def build(**changes) -> ImplicitModel:
    settings = {"blocks": MIXED, "structure": "full", "input_shape": (6,)}
    arguments: dict[str, Any] = matrices() | settings | {"reference_nonzeros": 9} | changes
    return ImplicitModel(**arguments)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("bias", [True, False])
def test_forward_solves_both_equations(structure, bias):
    model = implicit_model(structure, bias=bias)
    u = inputs(model)
    x, flat = model.equilibrium(u).states, u.flatten(1)
    b, d = (model.b, model.d) if model.b is not None and model.d is not None else (0, 0)
    A, B, C, D = (M.to_dense() for M in (model.A, model.B, model.C, model.D))
    z = x @ A.T + flat @ B.T + b
    torch.testing.assert_close(x, Stacked(MIXED)(z), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(u), x @ C.T + flat @ D.T + d)


def drawn(structure: str, density: float = 0.6) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(7)

    def sparse(*shape: int) -> Tensor:
        mask = torch.rand(shape, generator=g) < density
        return torch.randn(shape, dtype=torch.float64, generator=g) * mask

    A = sparse(12, 12) if structure != "full" else contraction(12, 0.8) * (sparse(12, 12) != 0)
    A = A if structure == "full" else strictly_upper(A, MIXED)
    return {"A": A, "B": sparse(12, 6), "C": sparse(2, 12), "D": sparse(2, 6)} | {
        "b": sparse(12),
        "d": sparse(2),
    }


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_model_of_matrices_is_what_the_formulas_say(structure, bias):
    given = drawn(structure)
    if not bias:
        given = {name: given[name] for name in "ABCD"}
    model = build(**given, structure=structure)
    for name, matrix in given.items():
        view = getattr(model, name)
        view = view if name in "bd" else view.to_dense()
        assert torch.equal(view.detach(), matrix)
    assert bias or (model.b is None and model.d is None)
    for name in "ABCD":
        view, x = getattr(model, name), torch.randn(3, given[name].shape[1]).double()
        assert view.shape == tuple(given[name].shape)
        assert view.nnz == int(given[name].count_nonzero())
        torch.testing.assert_close(view(x), x @ given[name].T, rtol=1e-12, atol=1e-12)
    assert model.nonzeros == sum(int(given[name].count_nonzero()) for name in "ABCD")
    u = torch.randn(5, 6, dtype=torch.float64)
    c = u @ given["B"].T + (given["b"] if bias else 0)
    x = torch.zeros_like(c)
    for _ in range(500):
        x = Stacked(MIXED)(x @ given["A"].T + c)
    y = x @ given["C"].T + u @ given["D"].T + (given["d"] if bias else 0)
    torch.testing.assert_close(model(u), y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.equilibrium(u).states, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_written_out_matrices_are_differentiable_in_the_weights(structure):
    model, given = build(**drawn(structure), structure=structure), drawn(structure)
    products = [(getattr(model, name).to_dense() * given[name]).sum() for name in "ABCD"]
    torch.stack(products).sum().backward()
    for weight in model.learned:
        assert torch.equal(weight.grad, weight.detach())


def test_the_same_matrix_twice_is_no_shared_weight():
    one = torch.ones(2, 2)
    model = ImplicitModel(
        one / 4, one, one, one, blocks=[Block("fc", 2, PHIS[0])], structure="full",
        input_shape=(2,), reference_nonzeros=16,
    )  # fmt: skip
    assert model.nonzeros == model.parameters_count == 16
    with torch.no_grad():
        model.learned[1].zero_()
    assert model.nonzeros == 12 and model.B.nnz == 0


def test_the_structure_is_that_of_the_equations():
    full, layered = implicit_model("full"), implicit_model("layered")
    assert ImplicitModel.from_equations(full.equations).structure == "full"
    with pytest.raises(InputError, match="no equation reads its own state"):
        ImplicitModel.from_equations(layered.equations, structure="full")


def test_the_former_name_of_omega_still_works():
    omega = torch.ones(12, dtype=torch.float64)
    with pytest.warns(DeprecationWarning, match="omega"):
        model = build(weights=omega)
    assert model.omega is not None and model.weights is model.omega
    assert torch.equal(model.omega, omega)


def test_the_equations_follow_the_parameters():
    model, other = implicit_model("triangular"), implicit_model("triangular", seed=1)
    model.load_state_dict(other.state_dict(), assign=True)
    u = inputs(model)
    assert torch.equal(model(u), other(u)) and torch.equal(model.A.to_dense(), other.A.to_dense())


@pytest.mark.parametrize("structure", ["triangular", "layered"])
def test_all_methods_agree_on_a_triangular_model(structure):
    model = implicit_model(structure)
    u = inputs(model)
    exact = model.equilibrium(u).states
    for method in ("anderson", "picard"):
        found = model.equilibrium(u, method=method, history=True)
        assert found.converged.all() and found.history is not None
        torch.testing.assert_close(found.states, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predictions_do_not_depend_on_the_batch(structure, dtype):
    model = implicit_model(structure, dtype=dtype)
    u = inputs(model, 9)
    alone = torch.cat([model(sample.unsqueeze(0)) for sample in u])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(model(u), alone, rtol=tolerance, atol=tolerance)
    assert model(u[:0]).shape == (0, 2)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradients_of_inputs_and_all_weights(structure):
    model = implicit_model(structure, same(PHIS[3]), input_shape=(2,))
    names = [name for name, _ in model.named_parameters()]

    def predict(u: Tensor, *others: Tensor) -> Tensor:
        arguments = dict(zip(names, others, strict=True))
        return torch.func.functional_call(model, arguments, (u,))

    leaves = [inputs(model, 2), *model.parameters()]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    # The default tolerance is 1e-10, hence coarser differences than usual.
    assert torch.autograd.gradcheck(predict, leaves, eps=1e-4, atol=1e-4)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_fine_tuning_lowers_the_loss_and_keeps_the_structure(structure):
    model = implicit_model(structure)
    u, target = inputs(model, 50), torch.ones(50, 2, dtype=torch.float64)
    outside = model.A.to_dense() == 0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        loss = (model(u) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert structure == "full" or (model.A.to_dense()[-5:] == 0).all() and outside.any()


def test_forward_never_returns_an_unconverged_state():
    model = implicit_model("full")
    u = inputs(model)
    u[2, 0, 0] = torch.nan
    with pytest.raises(NotConvergedError, match="1 of 7 samples .* NaN or infinity"):
        model(u)
    assert model.equilibrium(u).status[2] is Status.INVALID_INPUT
    model = build(blocks=same(PHIS[5]), A=2 * torch.ones(12, 12), B=torch.ones(12, 6))
    assert not model.certificate.well_posed
    with pytest.raises(NotConvergedError, match="4 of 4 samples"):
        model(torch.ones(4, 6))


@pytest.mark.parametrize("structure", ["triangular", "layered"])
def test_weights_that_turn_nan_later_are_noticed(structure):
    model = implicit_model(structure)
    with torch.no_grad():
        model.equations.hidden[-1].terms[0].weight[0, 0] = torch.nan
    with pytest.raises(NotConvergedError, match="7 of 7"):
        model(inputs(model))
    assert not model.certificate.well_posed


def test_counts_leave_biases_out():
    model = implicit_model("full", density=0.5)
    parts = (model.A, model.B, model.C, model.D)
    assert model.nonzeros == sum(int(part.to_dense().count_nonzero()) for part in parts)
    assert model.parameters_count == (12 + 2) * (12 + 6)
    assert model.sparsity == 1 - model.nonzeros / 100
    assert "full, p=6, n=12, q=2" in repr(model)


def test_sparsity_may_be_negative():
    assert build(reference_nonzeros=1).sparsity < 0


def test_certificate_is_of_the_current_weights():
    model = implicit_model("full", same(PHIS[0]))
    assert model.certificate.norm == pytest.approx(0.9)
    with torch.no_grad():
        model.learned[0].mul_(0.5)
    assert model.certificate.norm == pytest.approx(0.45)
    assert implicit_model("triangular").certificate.method == "nilpotent"


def test_weights_of_the_ball_are_kept_in_float64_by_every_cast():
    omega = 1 + torch.rand(12, dtype=torch.float64)
    A = contraction(12, 0.99, 2, omega)
    model = build(**{k: v.double() for k, v in (matrices() | {"A": A}).items()}, omega=omega)
    model = model.float()
    assert model.omega is not None and torch.equal(model.omega, omega)
    assert torch.equal(model.certificate.weights, omega)


def test_cast_keeps_kappa():
    omega = 1 + torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A = contraction(12, 0.99, 2, omega)
    model = build(**{k: v.double() for k, v in (matrices() | {"A": A}).items()}, omega=omega)
    single = model.cast(torch.float32)
    assert {p.dtype for p in single.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert single.certificate.norm <= 0.99 * (1 + 1e-9)
    assert copy.deepcopy(model).float().certificate.norm > 0.99 * (1 + 1e-9)
    assert single.nonzeros == model.nonzeros
    u = torch.randn(3, 6)
    torch.testing.assert_close(single(u), model(u).float(), rtol=1e-3, atol=1e-3)


def test_the_callers_tensors_are_neither_kept_nor_changed():
    given = matrices()
    before = copy.deepcopy(given)
    model = build(**given)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(2.0)
    assert all(torch.equal(given[name], before[name]) for name in given)


def test_masked_weights_have_no_negative_zeros():
    assert not build(B=-torch.ones(12, 6) * 0).learned[1].signbit().any()


def test_inputs_are_moved_to_the_dtype_of_the_weights():
    model = implicit_model("triangular", dtype=torch.float64)
    u = torch.randint(0, 2, (3, 2, 3))
    assert torch.equal(model(u), model(u.double()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"A": torch.zeros(11, 11)}, r"A of shape \(11, 11\): accepted is \(12, 12\)"),
        ({"B": torch.zeros(12, 7)}, r"B of shape \(12, 7\): accepted is \(12, 6\)"),
        ({"b": torch.zeros(3)}, r"b of shape \(3,\)"),
        ({"C": torch.zeros(2, 12).double()}, "C of torch.float64"),
        ({name: value.half() for name, value in matrices().items()}, "accepted is float32 or"),
        ({"D": torch.full((2, 6), torch.nan)}, "D holds 12 values that are NaN"),
        ({"A": torch.ones(12, 12), "structure": "triangular"}, "block 'fc3' uses itself or a"),
        ({"reference_nonzeros": 0}, "reference_nonzeros >= 1"),
        ({"omega": torch.zeros(12)}, "positive numbers"),
        ({"omega": torch.ones(12), "structure": "layered"}, "for structure 'full'"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)


def test_bad_calls_are_one_line():
    model = implicit_model("full")
    with pytest.raises(InputError, match=r"input of shape \(4, 6\): accepted is \(m, 2, 3\)"):
        model(torch.ones(4, 6))
    with pytest.raises(InputError, match="accepted for structure 'full' are anderson, picard"):
        model.equilibrium(inputs(model), method="exact")
