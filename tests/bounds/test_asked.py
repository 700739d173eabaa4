"""certify takes samples, classes, radii and bounds in any form, and says what it does not take."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import simplicit
from simplicit.errors import InputError


def net(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs))


X = torch.rand(12, 8, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    Y = net()(X).argmax(1)
EPS = torch.linspace(0.001, 0.05, 12)


@pytest.fixture(scope="module")
def plain():
    return simplicit.certify(net(), X, Y, 0.01)


@pytest.mark.parametrize(
    ("x", "y", "eps"),
    [
        (X.numpy(), Y, 0.01),
        (X, Y[:, None], 0.01),
        (X, F.one_hot(Y, 3), 0.01),
        (X, Y.numpy(), torch.tensor(0.01)),
        (X, Y.tolist(), np.float64(0.01)),
        (X, Y.float(), torch.full((12, 1), 0.01)),
        (X.requires_grad_(False), Y.int(), [0.01] * 12),
    ],
)
def test_any_form_is_the_same(plain, x, y, eps):
    found = simplicit.certify(net(), x, y, eps)
    assert torch.equal(found.certified, plain.certified)
    torch.testing.assert_close(found.radius, plain.radius, rtol=1e-6, atol=0)


def test_a_radius_for_each_sample(plain):
    found = simplicit.certify(net(), X, Y, EPS)
    assert torch.equal(found.certified, found.radius >= EPS)
    # a search that begins elsewhere ends within its precision
    torch.testing.assert_close(found.radius, plain.radius, rtol=0.02, atol=0)


def test_a_bound_for_each_input_is_the_one_for_all_where_it_is_the_same():
    one = simplicit.certify(net(), X, Y, 0.01, (0, 1))
    each = simplicit.certify(net(), X, Y, 0.01, (torch.zeros(8), np.ones(8)))
    assert torch.equal(one.radius, each.radius)
    # inputs that cannot move do not count
    low, high = X.amin(0), X.amax(0)
    tight = simplicit.certify(net(), X[:1], Y[:1], 0.01, (X[0], X[0]))
    assert float(tight.radius) > 1e5
    assert (simplicit.certify(net(), X, Y, 0.01, (low, high)).radius >= one.radius * 0.98).all()


@pytest.mark.parametrize("end", [nn.Identity(), nn.Sigmoid()])
def test_one_logit_has_two_classes(end):
    binary = nn.Sequential(net(1), end)
    with torch.no_grad():
        y = (net(1)(X)[:, 0] > 0).long()
        first, phi, last = net(1)
        assert isinstance(last, nn.Linear)
        both = nn.Linear(16, 2)
        both.weight.copy_(torch.cat([torch.zeros(1, 16), last.weight]))
        both.bias.copy_(torch.cat([torch.zeros(1), last.bias]))
        two = nn.Sequential(first, phi, both)
    found, expected = (simplicit.certify(n, X, y, 0.01) for n in (binary, two))
    assert torch.equal(found.radius, expected.radius)
    assert (found.radius > 0).all()
    assert not simplicit.certify(binary, X, 1 - y, 0.01).radius.any()


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_probabilities_have_the_classes_of_their_logits(plain, end):
    found = simplicit.certify(nn.Sequential(net(), end), X, Y, 0.01)
    assert torch.equal(found.radius, plain.radius)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": "cat.png"}, "x is a str"),
        ({"x": X[0]}, r"x of shape \(8,\)"),
        ({"x": (255 * X).byte()}, "uint8"),
        ({"x": X * float("nan")}, "NaN"),
        ({"y": Y[:5]}, r"y of shape \(5,\) for 12 samples"),
        ({"y": Y + 3}, "classes from 0 to 2"),
        ({"y": Y + 0.5}, "y has fractions"),
        ({"y": ["cat"] * 12}, "y is a list"),
        ({"eps": -0.1}, "eps=-0.1"),
        ({"eps": float("inf")}, "eps=inf"),
        ({"eps": torch.ones(5)}, r"eps of shape \(5,\) for 12"),
        ({"eps": "a lot"}, "eps is a str"),
        ({"bounds": (0.5, 1)}, "x has values outside"),
        ({"bounds": (0, 0.5, 1)}, "accepted are two"),
        ({"bounds": (torch.zeros(3), 1)}, r"bounds of shape \(3,\)"),
        ({"model": nn.Sequential(net(), nn.Sigmoid())}, "events"),
        ({"model": nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Unflatten(1, (2, 4)))}, "one row"),
        ({"methods": ["magic"]}, "method 'magic'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(change, message):
    asked = {"model": net(), "x": X, "y": Y, "eps": 0.01} | change
    with pytest.raises(InputError, match=message) as caught:
        simplicit.certify(**asked)
    assert "\n" not in str(caught.value)
