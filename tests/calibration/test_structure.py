"""Who may use what: the blocks partition the rows, and every structure keeps its promise."""

import pytest
import torch
from torch import Tensor

from example_networks import captured
from simplicit.calibration.structure import penalty_scales, row_blocks
from simplicit.convex.gram import Gram
from simplicit.equations.network import Equation, StateEquations, Term
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Dense

STRUCTURES = ("full", "triangular", "layered")
NETWORKS = ("relu", "residual", "shared")


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


def allowed(equations: StateEquations, structure, bias: bool) -> Tensor:
    """Which entries of [A B b; C D d] the blocks leave open."""
    n, p, q = equations.n, equations.p, equations.q
    mask = torch.zeros(n + q, n + p + bias, dtype=torch.bool)
    for block in row_blocks(equations, structure, bias):
        assert torch.equal(block.columns, block.columns.unique())
        mask[block.rows, block.columns] = True
    return mask


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_row_is_in_one_block_and_may_have_its_bias(name, structure):
    equations = captured(name)
    blocks = row_blocks(equations, structure, True)
    rows = [i for block in blocks for i in range(block.rows.start, block.rows.stop)]
    assert sorted(rows) == list(range(equations.n + equations.q))
    assert blocks[-1].name == "output" and blocks[-1].rows.stop == equations.n + equations.q
    assert all(block.columns[-1] == equations.n + equations.p for block in blocks)
    without = allowed(equations, structure, False)
    assert torch.equal(without, allowed(equations, structure, True)[:, :-1])


@pytest.mark.parametrize("name", NETWORKS)
def test_triangular_leaves_what_is_above_the_diagonal_blocks(name):
    equations = captured(name)
    n, mask = equations.n, allowed(equations, "triangular", True)
    for rows in equations.slices:
        assert not mask[rows, : rows.stop].any() and mask[rows, rows.stop :].all()
    assert mask[n:].all() and mask[:n, n:].all()


@pytest.mark.parametrize("name", NETWORKS)
def test_structures_contain_each_other_and_the_teacher(name):
    equations = captured(name)
    A, B, C, D, *_ = equations.dense()
    used = torch.cat([torch.cat([A, B], 1), torch.cat([C, D], 1)]) != 0
    full, triangular, layered = (allowed(equations, s, False) for s in STRUCTURES)
    assert full.all() and not (triangular & ~full).any()
    assert not (layered & ~triangular).any() and not (used & ~layered).any()


def test_layered_has_the_teachers_connections_and_no_other(skipping):
    # x is b (2), a (3); then u (4) and the bias
    b, a, y = [0] * 2 + [1] * 8, [0] * 5 + [1] * 5, [0] * 2 + [1] * 3 + [0] * 4 + [1]
    expected = torch.tensor([b] * 2 + [a] * 3 + [y] * 2, dtype=torch.bool)
    assert torch.equal(allowed(skipping, "layered", True), expected)


def test_blocks_come_first_layer_first(skipping):
    for structure in ("triangular", "layered"):
        assert [b.name for b in row_blocks(skipping, structure, True)] == ["a", "b", "output"]
    assert [b.name for b in row_blocks(skipping, "full", True)] == ["states", "output"]


def test_scales_are_the_root_mean_square_of_each_group(skipping):
    random = torch.Generator().manual_seed(0)
    V = torch.randn(50, 9, dtype=torch.float64, generator=random)
    V *= torch.tensor([3.0] * 2 + [1e-3] * 3 + [10.0] * 4)
    one = torch.ones(50, 1, dtype=torch.float64)
    rho = penalty_scales(skipping, Gram.from_data(torch.cat([V, one], 1), one))
    for group in (slice(0, 2), slice(2, 5), slice(5, 9)):
        rms = V[:, group].square().mean().sqrt()
        torch.testing.assert_close(rho[group], rms.expand(len(rho[group])), rtol=1e-12, atol=0)
    assert rho[9] == 0


def test_a_group_that_is_always_zero_keeps_a_positive_scale(skipping):
    V = torch.ones(5, 9, dtype=torch.float64)
    V[:, 2:5] = 0
    rho = penalty_scales(skipping, Gram.from_data(V, V[:, :1]))
    assert torch.equal(rho, torch.ones(9, dtype=torch.float64))
