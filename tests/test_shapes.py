"""The checks of shapes that all tests run under can fail, often enough; `unchecked` has none."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import beartype
import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from shapes import FIRST, STRIDE, checked, unchecked


def transposed(A: Float[Tensor, "m n"], *, times: int = 1) -> Float[Tensor, "n m"]:
    return A if times == 1 else A.T


def made(ndim: int):
    """Two functions of one name, made anew in each call."""
    if ndim == 1:

        def inner(x: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
            return x
    else:

        def inner(x: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
            return x

    return jaxtyped(inner, typechecker=checked)


@pytest.mark.parametrize("typechecker", [beartype.beartype, checked])
def test_arguments_and_results_are_checked_on_the_same_axes(typechecker):
    function = jaxtyped(transposed, typechecker=typechecker)
    assert function(torch.ones(2, 3), times=2).shape == (3, 2)
    wrong: list[dict[str, Any]] = [{"A": torch.ones(3)}, {"A": torch.ones(2, 2), "times": "2"}]
    for arguments in wrong:
        with pytest.raises(TypeCheckError, match="parameter"):
            function(**arguments)
    with pytest.raises(TypeCheckError, match="return value"):
        function(torch.ones(2, 3))


def test_functions_made_anew_share_checks_only_with_their_equals():
    for _ in range(2):
        for ndim in (1, 2):
            good, bad = torch.ones(ndim * (3,)), torch.ones((3 - ndim) * (3,))
            assert made(ndim)(good) is good
            with pytest.raises(TypeCheckError, match="parameter"):
                made(ndim)(bad)


@dataclass
class Row:
    w: Float[Tensor, " n"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: jaxtyped(transposed, typechecker=checked)(torch.ones(3)),
        lambda: made(1)(torch.ones(1, 1)),  # another object of the same code each time
        lambda: jaxtyped(Row, typechecker=checked)(torch.ones(1, 1)),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_of_many_calls_the_first_and_some_later_ones_are_checked_in_every_test(wrong, again):
    found = []
    for call in range(4 * STRIDE):
        try:
            wrong()
        except TypeCheckError:
            found.append(call)
    assert found[:FIRST] == list(range(FIRST))
    assert max(later - earlier for earlier, later in pairwise(found)) <= STRIDE
    assert found[-1] >= 3 * STRIDE and len(found) < FIRST + 5


def test_nothing_is_checked_inside_unchecked_and_all_is_again_after_it():
    function, A = jaxtyped(transposed, typechecker=checked), torch.ones(2, 3)
    with unchecked():
        for _ in range(FIRST):  # none of which counts
            assert function(A) is A
    with pytest.raises(TypeCheckError):
        function(A)
    with pytest.raises(ZeroDivisionError), unchecked():
        raise ZeroDivisionError
    with pytest.raises(TypeCheckError):
        function(A)
