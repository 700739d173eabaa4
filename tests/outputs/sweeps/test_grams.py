"""Grams that are kept: the part on a smaller support, and when they no longer hold."""

import pytest
import torch
from torch import Tensor

from simplicit.outputs.sweeps.grams import MOVED, Grams


def case() -> tuple[Tensor, list[Tensor], Tensor]:
    """A support, curvatures in two parts, and the Gram of the features there."""
    random = torch.Generator().manual_seed(0)
    V = torch.randn(20, 12, generator=random).double()
    h = torch.rand(20, 1, generator=random).double()
    S = torch.tensor([0, 2, 3, 7, 9])
    return S, [h[:8], h[8:]], (V * h).T @ V


def test_of_a_smaller_support_the_gram_is_a_part():
    S, h, H = case()
    grams = Grams(1000)
    assert grams.find(3, S, h) is None
    grams.keep(3, S, h, H[S][:, S])
    T = S[[1, 2, 4]]
    for support in (S, T):
        found = grams.find(3, support, h)
        assert found is not None and torch.equal(found, H[support][:, support])
    assert grams.find(4, S, h) is None


def test_what_was_not_in_the_support_is_not_known():
    S, h, H = case()
    grams = Grams(1000)
    grams.keep(0, S, h, H[S][:, S])
    for T in ([0, 1, 2], [10, 11], [0, 2, 3, 7, 9, 11]):
        assert grams.find(0, torch.tensor(T), h) is None


@pytest.mark.parametrize(("factor", "holds"), [(0.9, True), (1.1, True), (0.7, False), (3, False)])
def test_a_gram_holds_while_the_curvatures_have_hardly_changed(factor, holds):
    S, h, H = case()
    grams = Grams(1000)
    grams.keep(0, S, h, H[S][:, S])
    new = [factor * part for part in h]
    assert (grams.find(0, S, new) is not None) == holds == (abs(factor - 1) <= MOVED)
    nothing = [torch.full_like(part, torch.nan) for part in h]
    assert grams.find(0, S, nothing) is None


def test_no_more_is_kept_than_there_is_room_for():
    S, h, H = case()
    G = H[S][:, S]
    grams = Grams(2 * (G.numel() + 20))
    for row in range(3):
        grams.keep(row, S, h, G)
    assert [grams.find(row, S, h) is not None for row in range(3)] == [True, True, False]
    grams.keep(0, S[:1], h, G[:1, :1])  # a row's old Gram makes room for its new one
    grams.keep(0, S, h, G)
    assert grams.find(0, S, h) is not None


def test_only_what_was_found_again_can_be_forgotten():
    S, h, H = case()
    grams = Grams(1000)
    grams.keep(0, S, h, H[S][:, S])
    assert not grams.forget(0) and not grams.forget(1)
    assert grams.find(0, S, h) is not None
    assert grams.forget(0) and grams.find(0, S, h) is None and grams.room == 1000
