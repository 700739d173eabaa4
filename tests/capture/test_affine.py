import torch

from simplicit.capture.affine import Affine
from simplicit.equations.compose import identity, scale
from simplicit.equations.network import Equation, Term
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Conv, Dense, Gather

LIKE = torch.empty(0, dtype=torch.float64)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def evaluate(value: Affine, sources: dict[int, torch.Tensor]) -> torch.Tensor:
    equation = Equation("", value.terms, value.bias, Phi("identity"), value.summands)
    order = [sources[k] for k in sorted(sources) if k >= 0] + [sources[-1]]
    return equation.preactivation(order)


def test_affine_operations_are_those_of_the_value():
    first = Affine((1, 4), LIKE, (Term(-1, Dense(normal(4, 3))),), {0: scale(normal(4))}, normal(4))
    second = Affine((1, 4), LIKE, (Term(1, Dense(normal(4, 2))),), {0: identity(4)})
    s = {-1: normal(5, 3), 0: normal(5, 4), 1: normal(5, 2)}
    factor, constant = normal(4), normal(4)
    x, y = evaluate(first, s), evaluate(second, s)
    for mine, naive in (
        (first.scaled(factor), x * factor),
        (first.scaled(torch.tensor(2.0).expand(4).double()), x * 2),
        (second.scaled(factor), y * factor),
        (first.shifted(constant), x + constant),
        (second.shifted(constant), y + constant),
        (first.plus(second), x + y),
        (second.plus(second), y + y),
    ):
        torch.testing.assert_close(evaluate(mine, s), naive)


def test_moves_after_moves_are_one_map():
    value = Affine.of_source(0, (1, 6), LIKE).shifted(normal(6))
    s = {-1: normal(3, 1), 0: normal(3, 6)}
    x = evaluate(value, s)
    padded = value.mapped(Gather(torch.tensor([5, -1, 2, 2]), 6), (4,))
    reverse = padded.mapped(Gather(torch.tensor([3, 2, 1, 0]), 4), (2, 2))
    assert isinstance(reverse.fixed[0], Gather) and reverse.shape == (2, 2)
    zero = torch.zeros(3, 1, dtype=torch.float64)
    expected = torch.cat([x[:, 2:3], x[:, 2:3], zero, x[:, 5:]], 1)
    torch.testing.assert_close(evaluate(reverse, s), expected)


def test_only_factors_of_whole_channels_fold_into_a_convolution():
    conv = Conv(normal(2, 1, 3), (1, 5), (1,), ((1, 1),), (1,))
    value = Affine((1, 2, 5), LIKE, (Term(-1, conv),), adjust=("bias", torch.ones(2).double()))
    channel = torch.tensor([2.0, -3.0], dtype=torch.float64)
    assert value.by_channel(normal(10)) is None
    scaled = value.scaled(channel.repeat_interleave(5))
    (term,) = scaled.terms
    assert term.gain is not None and torch.equal(term.gain, channel)
    assert scaled.adjust is not None and torch.equal(scaled.adjust[1], channel)
    s = {-1: normal(4, 5)}
    expected = evaluate(value, s) * channel.repeat_interleave(5)
    torch.testing.assert_close(evaluate(scaled, s), expected)


def test_a_state_itself_is_recognised():
    value = Affine.of_source(2, (1, 3), LIKE)
    assert value.bare == 2 and value.reshaped((3, 1)).bare == 2
    assert value.shifted(normal(3)).bare is None
    assert value.scaled(normal(3)).bare is None
    assert value.plus(Affine.of_source(1, (1, 3), LIKE)).bare is None
