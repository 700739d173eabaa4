"""What every map with weights must do; `test_weighted_maps` inherits it once per class.

A case is a class, the shape of its weight, and its other fields.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import simplicit
from simplicit.equations.network import Equation, StateEquations, Term
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Dense, WeightedMap
from simplicit.model.implicit import ImplicitModel

BATCHES = pytest.mark.parametrize("batch", [0, 1, 5])


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def one_layer(linear: WeightedMap) -> ImplicitModel:
    """The map as a hidden layer, with a matrix behind it."""
    dtype = linear.weight.dtype
    bias = linear.spread(normal(len(linear.weight), dtype=dtype))
    layer = Equation("layer", (Term(-1, linear),), bias, Phi("tanh"))
    last = Dense(normal(2, linear.rows, dtype=dtype))
    output = Equation("output", (Term(0, last),), None, Phi("identity"))
    nonzeros = sum(int(m.weight.count_nonzero()) for m in (linear, last))
    return ImplicitModel.from_equations(
        StateEquations((layer,), output, (linear.columns,), nonzeros)
    )


class WeightedMapSuite:
    """Inherit, and parametrise `case`."""

    @pytest.fixture(params=[torch.float64, torch.float32], ids=str)
    def linear(self, request: pytest.FixtureRequest, case: tuple[Any, ...]) -> WeightedMap:
        kind, shape, *fields = case
        return kind(normal(*shape, dtype=request.param), *fields)

    def inputs(self, linear: WeightedMap, batch: int = 5) -> Tensor:
        return normal(batch, linear.columns, dtype=linear.weight.dtype)

    @BATCHES
    def test_a_map_is_its_matrix(self, linear: WeightedMap, batch: int):
        x, matrix = self.inputs(linear, batch), linear.to_dense()
        assert matrix.shape == (linear.rows, linear.columns)
        assert matrix.dtype == linear.weight.dtype
        torch.testing.assert_close(linear(x), x @ matrix.T)

    @BATCHES
    def test_position_by_position_a_map_is_one_matrix(self, linear: WeightedMap, batch: int):
        x, W = self.inputs(linear, batch), linear.weight.flatten(1)
        patches = linear.patches(x)
        assert patches.shape == (batch, linear.positions, linear.groups, W.shape[1])
        W = W.unflatten(0, (linear.groups, -1))
        products = torch.einsum("mpgd,god->mpgo", patches, W).flatten(2)
        torch.testing.assert_close(products, linear.by_channel(linear(x)))

    @BATCHES
    def test_some_positions_are_those_of_all(self, linear: WeightedMap, batch: int):
        x, some = self.inputs(linear, batch), torch.arange(linear.positions).flip(0)[::2]
        assert torch.equal(linear.patches(x, some), linear.patches(x)[:, some])

    def test_spread_and_by_channel_are_inverse(self, linear: WeightedMap):
        channel = normal(len(linear.weight), dtype=linear.weight.dtype)
        spread = linear.spread(channel)
        assert spread.shape == (linear.rows,)
        sorted_ = linear.by_channel(spread[None])
        assert torch.equal(sorted_, channel.expand(1, linear.positions, -1))
        order = linear.by_channel(torch.arange(linear.rows)[None].to(spread))
        assert torch.equal(order.flatten().sort().values, torch.arange(linear.rows).to(spread))

    def test_layout_says_how_results_are_sorted(self, linear: WeightedMap):
        order, positions, channels = linear.layout
        assert order in ("position, channel", "channel, position")
        assert (positions, channels) == (linear.positions, len(linear.weight))
        entries = torch.arange(float(linear.rows))[None]
        first = order == "position, channel"
        expected = entries.view(positions, channels) if first else entries.view(channels, -1).T
        assert torch.equal(linear.by_channel(entries)[0], expected)

    def test_absolute_has_the_absolute_values(self, linear: WeightedMap):
        assert torch.equal(linear.absolute().to_dense(), linear.to_dense().abs())
        assert torch.equal(linear.absolute().weight, linear.weight.abs())

    def test_products_are_the_most_that_an_entry_sums(self, linear: WeightedMap):
        ones = replace(linear, weight=torch.ones_like(linear.weight))
        assert int(ones.to_dense().count_nonzero(1).max()) == linear.products

    @pytest.mark.parametrize("biased", [False, True])
    def test_its_module_computes_the_same(self, linear: WeightedMap, biased: bool):
        x, channels = self.inputs(linear), len(linear.weight)
        bias = normal(channels, dtype=linear.weight.dtype) if biased else None
        module: Any = linear.to_module(bias)
        assert type(module).__module__.startswith("torch.nn.")
        expected = linear(x) if bias is None else linear(x) + linear.spread(bias)
        found = module(linear.framed(x.unflatten(1, linear.input_shape)))
        assert found.shape == (len(x), *linear.output_shape)
        torch.testing.assert_close(found.flatten(1), expected)
        sizes = {name: p.numel() for name, p in module.named_parameters()}
        assert sizes.pop("bias", 0) == (channels if biased else 0)
        assert sizes == {"weight": linear.weight.numel()}
        with torch.no_grad():  # copies
            module.weight.zero_()
        assert bool(linear.weight.any())

    def test_it_survives_the_archive(self, linear: WeightedMap, tmp_path):
        sparse = linear.weight * (normal(*linear.weight.shape).abs() > 0.5)
        model, x = one_layer(replace(linear, weight=sparse)), self.inputs(linear)
        model.save(tmp_path / "model")
        again = simplicit.load(tmp_path / "model")
        assert isinstance(again, ImplicitModel) and again.nonzeros == model.nonzeros
        assert torch.equal(again(x), model(x))

    def test_a_model_of_it_is_a_graph_of_modules(self, linear: WeightedMap):
        model, x = one_layer(linear), self.inputs(linear)
        torch.testing.assert_close(model.to_explicit()(x), model(x))
