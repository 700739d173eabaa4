import pytest
import torch

from simplicit.affine import Affine, as_matrix

MATRIX, DIAGONAL = torch.randn(4, 4), torch.randn(4)
BIAS = torch.randn(4)
SOURCES = {-1: torch.randn(4), 2: torch.randn(4)}


def value_of(affine: Affine) -> torch.Tensor:
    maps = sum(as_matrix(M) @ SOURCES[source] for source, M in affine.maps.items())
    return maps + affine.constant


CASES = [
    Affine({-1: MATRIX}, BIAS, "fc"),
    Affine({-1: DIAGONAL}),
    Affine({2: MATRIX.T}),
    Affine({-1: DIAGONAL, 2: MATRIX}, BIAS),
    Affine.of_source(2, BIAS),
]


@pytest.mark.parametrize("x", CASES)
def test_operations_are_those_of_the_value(x):
    close = torch.testing.assert_close
    close(value_of(x.scaled(DIAGONAL)), DIAGONAL * value_of(x))
    close(value_of(x.scaled(-0.5)), -0.5 * value_of(x))
    close(value_of(x.shifted(BIAS)), value_of(x) + BIAS)
    for y in CASES:
        close(value_of(x.plus(y)), value_of(x) + value_of(y))
