"""Which entries of A, B, C, D the structures leave open, and that they change no output."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conv_networks import images
from conv_networks import structured as convolutional
from example_networks import captured, example
from simplicit.calibration.rows import rows_of
from simplicit.calibration.structure import Structure, structured
from simplicit.equations.network import Equation, StateEquations, Term
from simplicit.equations.operators import nonzeros
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Dense
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel

STRUCTURES: tuple[Structure, ...] = ("full", "triangular", "layered")
NETWORKS = ("relu", "tanh, sigmoid", "batch norm", "residual", "shared", "tied", "broadcast")


@pytest.fixture
def skipping() -> StateEquations:
    """u (4) -> 3 -> 2 -> y (2): the second layer sees u as well, y only the first layer."""

    def w(rows: int, columns: int) -> Tensor:
        return torch.ones(rows, columns)

    return StateEquations(
        hidden=(
            Equation("a", (Term(-1, Dense(w(3, 4))),), None, Phi("relu")),
            Equation("b", (Term(-1, Dense(w(2, 4))), Term(0, Dense(w(2, 3)))), None, Phi("tanh")),
        ),
        output=Equation("c", (Term(0, Dense(w(2, 3))),), None, Phi("identity")),
        input_shape=(4,),
        nonzeros=32,
    )


def allowed(equations: StateEquations, structure: Structure) -> Tensor:
    """Which entries of [A B; C D] rows of the structure may use, or the network has fixed."""
    equations = structured(equations, structure)

    def sevens(equation: Equation) -> Equation:
        terms = tuple(
            replace(t, map=replace(t.map, weight=torch.full_like(t.weight, 7.0)))
            for t in equation.terms
        )
        return replace(equation, terms=terms)

    layers = [sevens(equation) for equation in equations.layers]
    A, B, C, D, *_ = replace(equations, hidden=tuple(layers[:-1]), output=layers[-1]).dense()
    return torch.cat([torch.cat([A, B], 1), torch.cat([C, D], 1)]) != 0


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_structure_changes_no_output_and_adds_no_weight(name, structure):
    equations, u = captured(name), example()
    found = structured(equations, structure)
    model = ImplicitModel.from_equations(found)
    torch.testing.assert_close(model(u).detach(), equations.replay(u)[1], rtol=1e-7, atol=1e-9)
    assert found.nonzeros == equations.nonzeros and found.input_shape == equations.input_shape
    assert found.like.dtype == torch.float64
    assert (found.n, found.p, found.q) == (equations.n, equations.p, equations.q)
    if structure != "full":  # which writes fixed and shared weights out
        assert nonzeros(found) == nonzeros(equations)


@pytest.mark.parametrize("name", NETWORKS)
def test_triangular_reads_every_earlier_layer_and_the_input(name):
    found = structured(captured(name), "triangular")
    assert not found.feedback
    for k, (before, after) in enumerate(zip(captured(name).layers, found.layers, strict=True)):
        assert {term.source for term in after.terms} == {*range(k), -1}
        # the network's own terms come first, as they were; those added are zero
        own = len(before.terms)
        assert after.terms[:own] == before.terms and after.fixed == before.fixed
        assert not any(term.weight.any() for term in after.terms[own:])


@pytest.mark.parametrize("name", NETWORKS)
def test_full_is_one_equation_that_reads_itself_and_the_input(name):
    equations = captured(name)
    found = structured(equations, "full")
    (states,) = found.hidden
    assert found.feedback and states.sources == (-1, 0) and found.output.sources == (-1, 0)
    assert [block.size for block in found.blocks] == [e.states for e in equations.hidden[::-1]]
    for mine, network in zip(found.dense(), equations.dense(), strict=True):
        torch.testing.assert_close(mine, network, rtol=0, atol=0)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["relu", "residual", "broadcast"])
def test_every_row_is_solved_once(name, structure):
    equations = structured(captured(name), structure)
    for index, equation in enumerate(equations.layers):
        rows = [r for r in rows_of(equations) if r.index == index]
        assert sorted(t for r in rows for t in r.terms) == list(range(len(equation.terms)))
        for r in rows:
            assert r.weights(equation).shape[:2].numel() * r.positions(equation) == equation.size


@pytest.mark.parametrize("name", NETWORKS)
def test_triangular_leaves_what_is_above_the_diagonal_blocks(name):
    equations = captured(name)
    n, mask = equations.n, allowed(equations, "triangular")
    for rows in equations.slices:
        assert not mask[rows, : rows.stop].any() and mask[rows, rows.stop :].all()
    assert mask[n:].all() and mask[:n, n:].all()


@pytest.mark.parametrize("name", NETWORKS)
def test_structures_contain_each_other_and_the_teacher(name):
    equations = captured(name)
    A, B, C, D, *_ = equations.dense()
    used = torch.cat([torch.cat([A, B], 1), torch.cat([C, D], 1)]) != 0
    full, triangular, layered = (allowed(equations, s) for s in STRUCTURES)
    assert full.all() and not (triangular & ~full).any()
    assert not (layered & ~triangular).any() and not (used & ~layered).any()


def test_layered_has_the_teachers_connections_and_no_other(skipping):
    assert structured(skipping, "layered") is skipping
    # x is b (2), a (3); then u (4)
    b, a, y = [0] * 2 + [1] * 7, [0] * 5 + [1] * 4, [0] * 2 + [1] * 3 + [0] * 4
    expected = torch.tensor([b] * 2 + [a] * 3 + [y] * 2, dtype=torch.bool)
    assert torch.equal(allowed(skipping, "layered"), expected)


def test_rows_come_first_layer_first(skipping):
    for structure in ("triangular", "layered"):
        rows = rows_of(structured(skipping, structure))
        assert [r.name for r in rows] == ["a", "b", "c"]
    assert [r.name for r in rows_of(structured(skipping, "full"))] == ["states", "output"]


@pytest.mark.parametrize("name", ["lenet", "tokens", "encoder layer"])
def test_what_is_not_all_matrices_has_one_structure(name):
    equations = convolutional(name)
    assert structured(equations, "layered") is equations
    assert equations.input_shape == images().shape[1:]
    for structure in ("full", "triangular"):
        with pytest.raises(InputError, match=f"'{structure}': .* accepted are layered and auto"):
            structured(equations, structure)
