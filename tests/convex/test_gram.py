import pytest
import torch

from cases import normal
from simplicit.convex.gram import Gram, among
from simplicit.errors import InputError


def same(a: Gram, b: Gram) -> None:
    torch.testing.assert_close(a.G, b.G, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(a.R, b.R, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(a.t2, b.t2, rtol=1e-13, atol=1e-13)
    assert a.m == b.m


V, T = normal(50, 7, seed=0), normal(50, 3, seed=1)


def test_moments_are_means_over_samples():
    gram = Gram.from_data(V, T)
    for i in range(7):
        for j in range(7):
            mean = sum(float(V[s, i] * V[s, j]) for s in range(50)) / 50
            assert float(gram.G[i, j]) == pytest.approx(mean, abs=1e-14)
    for k in range(3):
        torch.testing.assert_close(gram.R[k], (T[:, k : k + 1] * V).mean(0))
        assert float(gram.t2[k]) == pytest.approx(float((T[:, k] ** 2).mean()))
    assert gram.m == 50


@pytest.mark.parametrize("size", [1, 7, 50, 64])
def test_batches_add_up(size):
    stream = Gram(7, 3)
    for v, t in zip(V.split(size), T.split(size), strict=True):
        stream.update(v, t)
    same(stream, Gram.from_data(V, T))


def test_an_empty_batch_changes_nothing():
    gram = Gram.from_data(V, T)
    same(gram.update(V[:0], T[:0]), Gram.from_data(V, T))
    empty = Gram.from_data(V[:0], T[:0])
    assert empty.m == 0 and not empty.G.any() and not empty.R.any() and not empty.t2.any()


def test_merge_joins_samples():
    joined = Gram.from_data(V[:20], T[:20]).merge(Gram.from_data(V[20:], T[20:]))
    same(joined, Gram.from_data(V, T))
    same(Gram(7, 3).merge(Gram.from_data(V, T)), Gram.from_data(V, T))
    assert Gram(7, 3).merge(Gram(7, 3)).m == 0


def test_merge_leaves_both_as_they_were():
    one, two = Gram.from_data(V[:20], T[:20]), Gram.from_data(V[20:], T[20:])
    one.merge(two).update(V, T)
    same(one, Gram.from_data(V[:20], T[:20]))
    same(two, Gram.from_data(V[20:], T[20:]))


@pytest.mark.parametrize("columns", [slice(2, 5), [5, 0, 3], torch.tensor([6, 6, 1])])
def test_select_is_the_statistics_of_those_columns(columns):
    same(
        Gram.from_data(V, T).select(columns, [2, 0]),
        Gram.from_data(V[:, columns], T[:, [2, 0]]),
    )


def test_targets_are_exchanged_without_a_copy_of_the_features():
    gram, other = Gram.from_data(V, T), Gram.from_data(V, 2 * T[:, :2])
    exchanged = gram.with_targets(other.R, other.t2)
    same(exchanged, other)
    assert exchanged.G.data_ptr() == gram.G.data_ptr()


def test_float32_is_accumulated_in_float64():
    v, t = V.float(), T.float()
    gram = Gram.from_data(v, t)
    assert {gram.G.dtype, gram.R.dtype, gram.t2.dtype} == {torch.float64}
    same(gram, Gram.from_data(v.double(), t.double()))


def test_strides_do_not_matter_and_inputs_are_not_touched():
    v, t = V.T.contiguous().T, T.repeat_interleave(2, dim=1)[:, ::2]
    before = v.clone(), t.clone()
    same(Gram.from_data(v, t), Gram.from_data(V, T))
    assert torch.equal(v, before[0]) and torch.equal(t, before[1])


def test_rotating_the_samples_changes_nothing():
    Q = torch.linalg.qr(normal(50, 50, seed=2))[0]
    rotated = Gram.from_data(Q @ V, Q @ T)
    torch.testing.assert_close(rotated.G, Gram.from_data(V, T).G, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("v", "t"), [(V[:, :6], T), (V, T[:, :2])], ids=["features", "targets"])
def test_shapes_that_do_not_fit_are_named(v, t):
    with pytest.raises(InputError, match=r"features .* targets .* accepted are \(m, 7\)"):
        Gram(7, 3).update(v, t)


@pytest.mark.parametrize("features", [[], [0], [0, 1, 2], [1, 2], [0, 2], list(range(7))])
def test_the_part_of_some_features(features):
    G, some = Gram.from_data(V, T).G, torch.tensor(features, dtype=torch.long)
    found = among(G, some)
    assert torch.equal(found, G[some][:, some])
    shares = found.untyped_storage().data_ptr() == G.untyped_storage().data_ptr()
    assert shares == (features == list(range(len(features))))


def test_a_sum_that_overflows_is_of_finite_entries():
    gram = Gram.from_data(V, T)
    gram.G = torch.full_like(gram.G, 1e308)
    assert gram.finite
