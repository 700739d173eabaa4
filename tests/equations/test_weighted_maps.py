import pytest
import torch
import torch.nn.functional as F

from simplicit.equations.compose import averages, by_axis, compose, identity, plus, scale
from simplicit.equations.weighted_maps import Conv, Dense, Gather, LinearMap, Sparse


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


LIKE = normal(0)
EVEN, UNEVEN = ((1, 1), (1, 1)), ((0, 1), (2, 0))

MAPS: dict[str, LinearMap] = {
    "matrix": Dense(normal(3, 5)),
    "matrix at positions": Dense(normal(3, 5), 4),
    "convolution": Conv(normal(4, 3, 3, 3), (3, 5, 6), (1, 1), EVEN, (1, 1)),
    "grouped": Conv(normal(4, 1, 3, 2), (2, 7, 6), (2, 1), EVEN, (1, 2), 2),
    "uneven": Conv(normal(2, 3, 2, 2), (3, 4, 4), (1, 2), UNEVEN, (2, 1)),
    "sequence": Conv(normal(4, 1, 3), (2, 9), (2,), ((2, 2),), (2,), 2),
    "gather": Gather(torch.tensor([3, -1, 0, 0]), 5),
    "sparse": Sparse(torch.tensor([0, 0, 2]), torch.tensor([1, 4, 4]), normal(3), 3, 5),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_its_matrix(name):
    linear, x = MAPS[name], normal(6, MAPS[name].columns)
    matrix = linear.to_dense().double()
    assert matrix.shape == (linear.rows, linear.columns)
    torch.testing.assert_close(linear(x), x @ matrix.T)
    assert torch.equal(linear.absolute().to_dense().double(), matrix.abs())


@pytest.mark.parametrize("name", [name for name in MAPS if name not in ("gather", "sparse")])
def test_position_by_position_a_map_is_one_matrix(name):
    linear = MAPS[name]
    assert isinstance(linear, (Dense, Conv))
    x, W = normal(6, linear.columns), linear.weight.flatten(1)
    patches = linear.patches(x)
    assert patches.shape[:2] == (6, linear.positions) and patches.shape[3] == W.shape[1]
    groups = W.unflatten(0, (patches.shape[2], -1))
    products = torch.einsum("mpgd,god->mpgo", patches, groups).flatten(2)
    torch.testing.assert_close(products, linear.by_channel(linear(x)))
    channel = normal(len(W))
    spread = linear.by_channel(linear.spread(channel)[None])
    assert torch.equal(spread, channel.expand(1, linear.positions, -1))


def test_sizes_of_convolutions_are_those_of_torch():
    conv = MAPS["grouped"]
    assert isinstance(conv, Conv)
    out = F.conv2d(normal(1, 2, 7, 6), conv.weight, None, (2, 1), 1, (1, 2), 2)
    assert conv.output_shape == out.shape[1:]


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
