import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from example_networks import captured, sequential
from simplicit.calibration.batches import batches, collect
from simplicit.errors import InputError

U = torch.randn(10, 2, 3, generator=torch.Generator().manual_seed(0))


def generator(*items):
    yield from items


@pytest.mark.parametrize(
    "inputs",
    [
        U,
        [U[:4], U[4:8], U[8:]],
        [(U[:4], torch.zeros(4)), [U[4:8], torch.zeros(4)], (U[8:],)],
        DataLoader(TensorDataset(U, torch.zeros(10)), batch_size=4),
        [U[:4], U[:0], U[4:8], U[8:]],
    ],
    ids=["tensor", "list", "pairs", "DataLoader", "an empty batch among others"],
)
def test_any_source_gives_the_same_batches_each_pass(inputs):
    stream = batches(inputs, 4)
    for _ in range(2):
        assert [len(batch) for batch in stream] == [4, 4, 2]
        assert torch.equal(torch.cat(list(stream)), U)
        assert torch.equal(stream.example, U[:4])


def test_a_generator_is_passed_over_once_and_its_example_is_not_lost():
    stream = batches(generator(U[:4], U[4:]), 64)
    assert torch.equal(stream.example, U[:4]) and torch.equal(stream.example, U[:4])
    assert torch.equal(torch.cat(list(stream)), U)
    for again in (lambda: list(stream), lambda: stream.example):
        with pytest.raises(InputError, match="generator that is used up, and several passes"):
            again()


def with_entry(value: float) -> torch.Tensor:
    spoilt = U.clone()
    spoilt[6, 1, 2] = value
    return spoilt


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (U[:0], "empty"),
        ([], "empty"),
        (generator(), "empty"),
        (with_entry(float("nan")), "batch 1, sample 2, has NaN"),
        (with_entry(float("-inf")), "batch 1, sample 2, has NaN"),
        ([U, U.flatten(1)], r"batch 1 has shape \(10, 6\): accepted is \(m, 2, 3\)"),
        (torch.randint(0, 255, (10, 2, 3), dtype=torch.uint8), "uint8: .* floating point"),
        (torch.ones(10), r"batch 0 has shape \(4,\)"),
        ([{"image": U}], "batch 0 is a dict"),
        ([U.numpy()], "batch 0 is a ndarray"),
    ],
)
def test_bad_inputs_are_named_in_one_line(inputs, message):
    with pytest.raises(InputError, match=message) as caught:
        list(batches(inputs, 4))
    assert "\n" not in str(caught.value)


def test_the_networks_own_shape_is_asked_for():
    with pytest.raises(InputError, match=r"batch 0 has shape \(4, 2, 3\): accepted is \(m, 6\)"):
        list(batches(U, 4, input_shape=(6,)))


def test_collected_states_are_the_networks():
    net, u = sequential("leaky relu"), U.flatten(1).double()
    equations = captured("leaky relu")
    inputs, Z, Y = collect(equations, u)
    assert {M.dtype for M in (inputs, Z, Y)} == {torch.float64}
    assert inputs.shape == (10, 6) and Z.shape == (10, 16)
    torch.testing.assert_close(Y, net(u))
    # last hidden layer first: its states make the outputs
    X = equations.activate(Z)
    torch.testing.assert_close(net[-1](X[:, :7]), net(u))
    torch.testing.assert_close(Z[:, 11:], net[0](u))
    assert {M.dtype for M in collect(equations, u, torch.float32)} == {torch.float32}


def test_batches_add_up():
    equations = captured("relu")
    whole = collect(equations, U.flatten(1))
    parts = [collect(equations, batch) for batch in batches(U.flatten(1), 3)]
    for everything, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(pieces), everything, rtol=1e-12, atol=1e-12)
