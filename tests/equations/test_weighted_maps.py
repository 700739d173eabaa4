import ast
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import simplicit
from simplicit.equations.compose import averages, by_axis, compose, identity, plus, scale
from simplicit.equations.maps.matrix import swapped
from simplicit.equations.weighted_maps import (
    WEIGHTED_MAPS,
    Conv,
    ConvTranspose,
    Dense,
    Gather,
    Sparse,
)
from weighted_map_suite import WeightedMapSuite, normal

LIKE = normal(0)
EVEN, UNEVEN = ((1, 1), (1, 1)), ((0, 1), (2, 0))

CASES = {
    Dense: {
        "matrix": (Dense, (3, 5)),
        "matrix at positions": (Dense, (3, 5), 4),
    },
    Conv: {
        "convolution": (Conv, (4, 3, 3, 3), (3, 5, 6), (1, 1), EVEN, (1, 1)),
        "grouped": (Conv, (4, 1, 3, 2), (2, 7, 6), (2, 1), EVEN, (1, 2), 2),
        "uneven": (Conv, (2, 3, 2, 2), (3, 4, 4), (1, 2), UNEVEN, (2, 1)),
        "one place": (Conv, (2, 3, 2, 2), (3, 2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1)),
        "sequence": (Conv, (4, 1, 3), (2, 9), (2,), ((2, 2),), (2,), 2),
        "volume": (
            *(Conv, (4, 2, 2, 3, 1), (4, 4, 5, 3)),
            *((1, 2, 1), ((1, 0), (1, 1), (0, 0)), (2, 1, 1), 2),
        ),
    },
    ConvTranspose: {
        "twice the size": (ConvTranspose, (3, 4, 4, 4), (4, 2, 3), (2, 2), (1, 1), (0, 0), (1, 1)),
        "gaps": (ConvTranspose, (2, 3, 2, 1), (3, 3, 4), (3, 2), (0, 0), (1, 1), (1, 1)),
        "grouped": (ConvTranspose, (4, 3, 3, 2), (6, 4, 5), (2, 1), (1, 0), (1, 0), (1, 2), 2),
        "cut off": (ConvTranspose, (2, 3, 2, 2), (3, 5, 5), (1, 2), (2, 3), (0, 1), (1, 2)),
        "one place": (ConvTranspose, (2, 3, 4, 4), (3, 1, 1), (1, 1), (0, 0), (0, 0), (1, 1)),
        "sequence": (ConvTranspose, (3, 2, 5), (2, 6), (4,), (2,), (1,), (2,)),
        "volume": (
            *(ConvTranspose, (2, 1, 2, 3, 2), (2, 3, 2, 2)),
            *((1, 2, 2), (0, 1, 0), (0, 1, 0), (1, 1, 3), 2),
        ),
    },
}
"""By class and name: what `WeightedMapSuite` takes."""


def cases_of(kind: type):
    return pytest.mark.parametrize("case", CASES[kind].values(), ids=CASES[kind])


@cases_of(Dense)
class TestDense(WeightedMapSuite):
    pass


@cases_of(Conv)
class TestConv(WeightedMapSuite):
    pass


@cases_of(ConvTranspose)
class TestConvTranspose(WeightedMapSuite):
    pass


def test_every_map_with_weights_is_tested():
    assert set(WEIGHTED_MAPS) == set(CASES)
    assert {f"Test{kind.__name__}" for kind in WEIGHTED_MAPS} <= set(globals())


def test_no_file_asks_which_map_with_weights_it_has():
    """Outside the equations, the capture, which makes them, and the runtime, which writes each as
    machine code, only `WeightedMap` is known."""
    names, root = {kind.__name__ for kind in WEIGHTED_MAPS}, Path(simplicit.__file__).parent
    asked = []
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] in ("equations", "capture", "runtime"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                kinds = {getattr(part, "id", "") for part in ast.walk(node.args[1])}
                asked += [f"{path}:{node.lineno}"] if kinds & names else []
    assert asked == []


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_swapped_twice_are_the_weights(groups):
    weight = normal(4, 3, 2, 5)
    once = swapped(weight, groups)
    assert once.shape == (3 * groups, 4 // groups, 2, 5)
    assert torch.equal(swapped(once, groups), weight)


FIXED = {
    "gather": Gather(torch.tensor([3, -1, 0, 0]), 5),
    "sparse": Sparse(torch.tensor([0, 0, 2]), torch.tensor([1, 4, 4]), normal(3), 3, 5),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_map_without_weights_is_its_matrix(name):
    linear, x = FIXED[name], normal(6, FIXED[name].columns)
    matrix = linear.to_dense().double()
    assert matrix.shape == (linear.rows, linear.columns)
    torch.testing.assert_close(linear(x), x @ matrix.T)
    assert torch.equal(linear.absolute().to_dense().double(), matrix.abs())


@pytest.mark.parametrize("outer", ["gather", "sparse", "scale"])
@pytest.mark.parametrize("inner", ["gather", "sparse", "identity"])
def test_fixed_maps_in_a_row_and_summed(outer, inner):
    fixed = {
        "gather": Gather(torch.tensor([2, -1, 0, 4, 4]), 5),
        "sparse": Sparse(torch.tensor([0, 0, 3]), torch.tensor([1, 4, 4]), normal(3), 5, 5),
        "scale": scale(normal(5)),
        "identity": identity(5),
    }
    a, b, x = fixed[outer], fixed[inner], normal(3, 5)
    torch.testing.assert_close(compose(a, b, LIKE)(x), a(b(x)))
    torch.testing.assert_close(plus(a, b, LIKE)(x), a(x) + b(x))


def test_disjoint_moves_add_up_to_a_move():
    first, second = Gather(torch.tensor([1, -1, 0]), 3), Gather(torch.tensor([-1, 2, -1]), 3)
    assert isinstance(plus(first, second, LIKE), Gather)


def test_averages():
    x = normal(4, 6)
    mean = averages(torch.arange(6).view(2, 3), 6, LIKE)
    torch.testing.assert_close(mean(x), x.view(4, 2, 3).mean(2))


def test_average_pooling_works_on_each_axis_by_itself():
    x = normal(4, 2, 7, 5)
    pooled = F.avg_pool2d(x, (3, 2), (2, 1), 1, ceil_mode=True, count_include_pad=False)

    def along(k, s):
        return lambda unit: F.avg_pool1d(unit[:, None], k, s, 1, True, False)[:, 0]

    linear = by_axis((2, 7, 5), [along(3, 2), along(2, 1)], LIKE)
    torch.testing.assert_close(linear(x.flatten(1)), pooled.flatten(1))
