"""Without its dead states a model is the same function, and has none left."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conv_networks import CONVOLUTIONAL, images, sparse, structured
from example_networks import captured, example
from simplicit.capture.read import capture
from simplicit.equations.phi import Phi, PhiName
from simplicit.model.equilibrium import Block
from simplicit.model.implicit import ImplicitModel, Structure
from simplicit.refine.dead_states import without_dead_states


def model(seed: int, density: float, phi: PhiName, bias: bool, structure: Structure = "triangular"):
    """Layers of 4, 3 and 2 states, last first, with so many non-zero weights."""
    g = torch.Generator().manual_seed(seed)
    sizes, p, q = (2, 3, 4), 3, 2
    n = sum(sizes)

    def sparse(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=g, dtype=torch.float64)
        return values * (torch.rand(shape, generator=g) < density)

    A = sparse(n, n)
    starts = [0, 2, 5, 9]
    if structure == "triangular":
        for first, last in zip(starts, starts[1:], strict=False):
            A[first:last, :last] = 0.0
    else:
        A /= 2 * A.abs().sum(1, keepdim=True).clamp_min(1.0)
    b, d = (torch.randn(k, generator=g, dtype=torch.float64) for k in (n, q))
    blocks = [Block(f"layer {i}", size, Phi(phi)) for i, size in enumerate(sizes)]
    return ImplicitModel(
        A, sparse(n, p), sparse(q, n), sparse(q, p), b if bias else None, d if bias else None,
        blocks=blocks, structure=structure, input_shape=(p,), reference_nonzeros=40,
    )  # fmt: skip


@given(
    seed=st.integers(0, 10_000),
    density=st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    phi=st.sampled_from(["relu", "tanh", "sigmoid"]),
    bias=st.booleans(),
    structure=st.sampled_from(["triangular", "full"]),
)
def test_the_function_is_the_same_and_nothing_is_dead(seed, density, phi, bias, structure):
    before = model(seed, density, phi, bias, structure)
    after = without_dead_states(before)
    u = torch.randn(20, 3, dtype=torch.float64)
    torch.testing.assert_close(after(u), before(u), rtol=1e-8, atol=1e-8)
    assert after.nonzeros <= before.nonzeros and 1 <= after.n <= before.n
    if after.n > 1:
        A, B, C = (M.to_dense() for M in (after.A, after.B, after.C))
        assert ((A != 0).any(0) | (C != 0).any(0)).all()
        moved = (A != 0).any(1) | (B != 0).any(1)
        assert moved.all() or not bias
    again = without_dead_states(after)
    assert again.n == after.n and again.nonzeros == after.nonzeros


@pytest.mark.parametrize("structure", ["triangular", "full"])
def test_the_certificate_holds_and_the_model_stays(structure):
    before = model(3, 0.1, "relu", bias=True, structure=structure)
    copy = [t.clone() for t in before.state_dict().values()]
    after = without_dead_states(before)
    assert after.n < before.n and after.certificate.well_posed
    kept = before.state_dict().values()
    assert all(torch.equal(x, y) for x, y in zip(kept, copy, strict=True))


def test_a_chain_of_constants_ends_in_the_outputs():
    eye = torch.eye(2, dtype=torch.float64)
    chain = ImplicitModel(
        torch.tensor([[0.0, 3.0], [0.0, 0.0]]).double(), 0 * eye, eye[:, :1] * torch.ones(1, 2),
        eye, torch.tensor([1.0, 2.0]).double(), torch.zeros(2).double(),
        blocks=[Block("2", 1, Phi("relu")), Block("0", 1, Phi("relu"))],
        structure="triangular", input_shape=(2,), reference_nonzeros=4,
    )  # fmt: skip
    after = without_dead_states(chain)
    assert after.n == 1 and after.nonzeros == 2  # what is left is D
    torch.testing.assert_close(after(torch.zeros(1, 2)), chain(torch.zeros(1, 2)))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_networks_of_all_kinds_keep_their_function(name, density):
    before = ImplicitModel.from_equations(sparse(structured(name), density))
    after, u = without_dead_states(before), images(6)
    with torch.no_grad():
        torch.testing.assert_close(after(u), before(u), rtol=1e-9, atol=1e-9)
    assert after.nonzeros <= before.nonzeros
    assert without_dead_states(after).nonzeros == after.nonzeros
    for mine, yours in zip(after.learned, before.learned, strict=True):
        assert not mine[yours == 0].any()


def channels(padding: int, phi: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), phi, nn.Conv2d(4, 5, 3, padding=padding), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5 if padding == 0 else 20, 3),
    ).double()  # fmt: skip


@pytest.mark.parametrize(
    ("padding", "phi", "places"),
    # of a padded kernel only the middle never reads padding
    [(0, nn.ReLU(), 9), (0, nn.Sigmoid(), 9), (1, nn.ReLU(), 9), (1, nn.Sigmoid(), 1)],
)
def test_a_constant_channel_folds_unless_padding_changes_it(padding, phi, places):
    net, u = channels(padding, phi), images(5)
    with torch.no_grad():
        net.get_parameter("0.weight")[1] = 0.0
        net.get_parameter("0.bias")[1] = -0.5  # relu makes it 0
        net.get_parameter("2.weight")[3] = 0.0
        net.get_parameter("2.bias")[3] = 0.25  # read through pooling, constant in every window
        before = ImplicitModel.from_equations(capture(net, u))
        after = without_dead_states(before)
        torch.testing.assert_close(after(u), before(u), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(after(u), net(u), rtol=1e-10, atol=1e-10)
    head = 3 if padding == 0 else 12
    assert before.nonzeros - after.nonzeros == head + 4 * places
    after.load_into(net)
    torch.testing.assert_close(net(u), before(u), rtol=1e-10, atol=1e-10)


def test_channels_that_nothing_reads_lose_their_weights():
    net, u = channels(1, nn.Tanh()), images(5)
    with torch.no_grad():
        net.get_parameter("2.weight")[:, 2] = 0.0
        net.get_parameter("6.weight").view(3, 5, -1)[:, 4] = 0.0
    before = ImplicitModel.from_equations(capture(net, u))
    after = without_dead_states(before)
    with torch.no_grad():
        torch.testing.assert_close(after(u), before(u), rtol=1e-10, atol=1e-10)
    assert before.nonzeros - after.nonzeros == 3 * 9 + 3 * 9  # of the first and the second layer


def test_shared_weights_stay():
    before = ImplicitModel.from_equations(sparse(captured("tied"), 0.1))
    after = without_dead_states(before)
    torch.testing.assert_close(after(example()), before(example()))
