import pytest
import torch

from example_networks import CAPTURED, captured
from simplicit.equations.network import Equation, StateEquations, Term
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Dense


@pytest.fixture
def equations() -> StateEquations:
    """u (4) -> 3 -> 2 -> y (2), where the second layer and y also see earlier sources."""
    random = torch.Generator().manual_seed(0)

    def w(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=random)

    return StateEquations(
        hidden=(
            Equation("a", (Term(-1, Dense(w(3, 4))),), w(3, 1)[:, 0], Phi("relu")),
            Equation("b", (Term(-1, Dense(w(2, 4))), Term(0, Dense(w(2, 3)))), None, Phi("tanh")),
        ),
        output=Equation(
            "c", (Term(0, Dense(w(2, 3))), Term(1, Dense(w(2, 2)))), w(2, 1)[:, 0], Phi("identity")
        ),
        input_shape=(2, 2),
        nonzeros=36,
    )


def test_replay_follows_the_terms(equations):
    u = torch.randn(7, 2, 2)
    (first, second), output = equations.hidden, equations.output
    flat = u.flatten(1)
    z1 = flat @ first.terms[0].weight.T + first.bias
    z2 = flat @ second.terms[0].weight.T + z1.relu() @ second.terms[1].weight.T
    y = z1.relu() @ output.terms[0].weight.T + z2.tanh() @ output.terms[1].weight.T + output.bias
    (r1, r2), replayed = equations.replay(u)
    for mine, naive in ((r1, z1), (r2, z2), (replayed, y)):
        torch.testing.assert_close(mine, naive)


def test_dense_puts_the_last_hidden_layer_first(equations):
    A, B, C, D, b, d = equations.dense()
    assert {M.dtype for M in (A, B, C, D, b, d)} == {torch.float64}
    (first, second), output = equations.hidden, equations.output
    zero = torch.zeros
    blocks = torch.cat([zero(2, 2), second.terms[1].weight], 1)
    torch.testing.assert_close(A.float(), torch.cat([blocks, zero(3, 5)]))
    torch.testing.assert_close(
        B.float(), torch.cat([second.terms[0].weight, first.terms[0].weight])
    )
    torch.testing.assert_close(
        C.float(), torch.cat([output.terms[1].weight, output.terms[0].weight], 1)
    )
    assert D.shape == (2, 4) and not D.any()
    torch.testing.assert_close(b.float(), torch.cat([zero(2), first.bias]))
    torch.testing.assert_close(d.float(), output.bias)


def test_activate_uses_each_layers_own_phi(equations):
    Z = torch.randn(6, 5, dtype=torch.float64)
    assert torch.equal(equations.activate(Z), torch.cat([Z[:, :2].tanh(), Z[:, 2:].relu()], 1))


@pytest.mark.parametrize("name", CAPTURED)
def test_A_is_strictly_block_upper_triangular(name):
    equations = captured(name)
    A = equations.dense()[0]
    for rows in equations.slices:
        assert not A[rows, : rows.stop].any()
