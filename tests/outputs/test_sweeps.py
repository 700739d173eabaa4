"""Joint matching: derivatives against autograd, states against recomputation, budgets, descent."""

import pytest
import torch
from torch import Tensor

from simplicit.calibration.batches import collect
from simplicit.calibration.structure import row_blocks
from simplicit.outputs.sweeps import JointMatching
from teachers import PHIS, read, samples


def job(phi: str = "relu", shift: float = 0.0, workers: int = 1) -> JointMatching:
    """The teacher itself, its weights moved at random."""
    e = read(phi)
    U, _, Y = collect(e, samples())
    A, B, C, D, b, d = e.dense()
    W = torch.cat([torch.cat([A, B, b[:, None]], 1), torch.cat([C, D, d[:, None]], 1)])
    random = torch.Generator().manual_seed(0)
    W = W + shift * torch.randn(W.shape, generator=random).double() * (W != 0)
    V = torch.cat([U.new_zeros(len(U), e.n), U, torch.ones_like(U[:, :1])], 1)
    free = torch.arange(V.shape[1]) == V.shape[1] - 1
    blocks = row_blocks(e, "triangular", bias=True)
    return JointMatching(W, blocks, e.elementwise, V, Y, free, 0.1, workers)


def outputs(joint: JointMatching, W: Tensor) -> Tensor:
    V = torch.cat([part.V for part in joint.parts], 1)
    for block, phi in zip(joint.blocks[:-1], joint.parts[0].phis, strict=True):
        V[block.rows] = phi(W[block.rows] @ V)
    return W[joint.blocks[-1].rows] @ V


def kept(joint: JointMatching) -> Tensor:
    return torch.cat([part.Y for part in joint.parts], 1)


def distance(joint: JointMatching, Y: Tensor) -> float:
    parts = zip(joint.parts, Y.tensor_split(len(joint.parts), 1), strict=True)
    return sum(part.distance(y) for part, y in parts) / joint.m


@pytest.mark.parametrize("phi", PHIS)
def test_the_teacher_is_at_distance_zero_and_stays_there(phi):
    joint = job(phi)
    assert joint.distance < 1e-7  # float32
    before = joint.W.clone()
    joint.sweep()
    assert joint.distance < 1e-7  # float32
    torch.testing.assert_close(joint.W, before, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("phi", PHIS)
def test_sweeps_on_a_support_only_come_nearer_and_states_stay_true(phi):
    joint = job(phi, shift=0.3)
    distances = [joint.distance]
    support = joint.W != 0
    for _ in range(4):
        joint.sweep()
        distances.append(joint.distance)
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.3 * distances[0]
    assert not joint.W[~support & ~joint.free].any()
    torch.testing.assert_close(kept(joint), outputs(joint, joint.W), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("phi", ["tanh", "sigmoid"])
def test_slope_and_curvature_are_those_of_the_distance(phi):
    joint = job(phi, shift=0.3)
    for part in joint.parts:
        part.inactive = 0.0
    last = len(joint.W) - 1
    for index, block in enumerate(joint.blocks):
        k = block.rows.start
        found = [part.expand(k, index) for part in joint.parts]
        h, g = (torch.cat(halves) for halves in zip(*found, strict=True))
        bias = joint.W[k, -1].clone()

        def at(move: float, k: int = k, bias: Tensor = bias) -> float:
            W = joint.W.clone()
            W[k, -1] = bias + move
            return distance(joint, outputs(joint, W))

        slope = (at(1e-2) - at(-1e-2)) / 2e-2
        assert slope == pytest.approx(-float(g.mean()), rel=2e-2, abs=1e-4)
        if k > last - 3:  # outputs enter without any φ: the curvature is exact there
            bend = (at(0.1) - 2 * at(0.0) + at(-0.1)) / 1e-2
            assert bend == pytest.approx(float(h.mean()), rel=5e-2)
        assert (h >= 0).all()


def test_a_teacher_that_is_sure_of_everything_has_curvature_all_the_same():
    joint = job("relu", shift=0.3)
    for part in joint.parts:
        part.temperature, part.variance, part.Y = 1.0, 1e20, part.Y * 10
        for index, block in enumerate(joint.blocks):
            for k in range(block.rows.start, block.rows.stop):
                assert (part.expand(k, index)[0] >= 0).all()


@pytest.mark.parametrize("budget", [40, 20, 0])
def test_a_budget_is_reached_to_the_unit(budget):
    joint = job(shift=0.1)
    start = joint.nonzeros()
    joint.sweep(start)
    assert joint.nonzeros() == start
    wanted = start
    while wanted > budget:
        wanted = max(budget, wanted // 2)
        joint.sweep(wanted)
        assert joint.nonzeros() == wanted
    torch.testing.assert_close(kept(joint), outputs(joint, joint.W), atol=1e-4, rtol=1e-4)


def test_threads_do_not_change_bits():
    one, two = (job(shift=0.3, workers=workers) for workers in (1, 2))
    for joint in (one, two):
        joint.match(40, sweeps=5)
    assert torch.equal(one.W, two.W)


def test_a_budget_is_not_spent_on_states_that_are_constant():
    joint = job("sigmoid", shift=0.3)
    joint.W[4, :-1] = 0.0
    readers = joint.W[:, 4] != 0
    joint._grow(joint.W.numel())
    assert torch.equal(joint.W[:, 4] != 0, readers)
    assert joint.W[9:, 5].all()  # other states of that layer are read by the outputs now
