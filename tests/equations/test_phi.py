"""Each φ against torch's own module, and the facts about it that the certificates use."""

import pytest
import torch
from torch import nn

from simplicit.equations.phi import Phi
from simplicit.errors import InputError

MODULES = {
    Phi("relu"): nn.ReLU(),
    Phi("leaky_relu", 0.3): nn.LeakyReLU(0.3),
    Phi("leaky_relu", 1.7): nn.LeakyReLU(1.7),
    Phi("relu6"): nn.ReLU6(),
    Phi("tanh"): nn.Tanh(),
    Phi("sigmoid"): nn.Sigmoid(),
    Phi("silu"): nn.SiLU(),
    Phi("gelu"): nn.GELU(),
    Phi("gelu_tanh"): nn.GELU("tanh"),
    Phi("identity"): nn.Identity(),
}
PHIS = pytest.mark.parametrize("phi", MODULES, ids=str)
z = torch.linspace(-6, 6, 4001, dtype=torch.float64)


@PHIS
def test_it_is_the_module_of_that_name(phi):
    assert torch.equal(phi(z), MODULES[phi](z))
    assert phi(z[None, :, None].float()).shape == (1, 4001, 1)


@PHIS
def test_the_lipschitz_constant_is_the_steepest_slope(phi):
    slopes = phi(z).diff() / z.diff()
    assert phi.name in ("silu", "gelu", "gelu_tanh") or slopes.min() >= 0
    assert phi.lipschitz * (1 - 1e-5) <= slopes.abs().max() <= phi.lipschitz * (1 + 1e-9)


@PHIS
def test_the_derivative_is_autograds(phi):
    x = z[(z != 0) & (z != 6)].clone().requires_grad_()
    (expected,) = torch.autograd.grad(phi(x).sum(), x)
    torch.testing.assert_close(phi.derivative(x.detach()), expected, rtol=1e-9, atol=1e-12)


@PHIS
def test_homogeneous_means_that_positive_factors_pass_through(phi):
    passes = all(torch.allclose(phi(s * z), s * phi(z), rtol=1e-12, atol=0) for s in (0.1, 3, 40))
    assert phi.homogeneous == passes


@pytest.mark.parametrize("slope", [-0.1, float("nan"), float("inf")])
def test_slopes_that_are_refused(slope):
    with pytest.raises(InputError, match=f"slope {slope}: must be finite and at least 0"):
        Phi("leaky_relu", slope)
