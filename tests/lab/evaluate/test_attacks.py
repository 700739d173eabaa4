"""Attacks stay in their balls and find what is there to find."""

import pytest
import torch
from torch import nn

from random_models import implicit_model, inputs
from simplicit.bounds.certify import as_model
from simplicit.errors import InputError
from simplicit.lab.evaluate import corruptions, external
from simplicit.lab.evaluate.attacks import fgsm, pgd, relaxation, right
from simplicit.lab.evaluate.routes import Judge


def line() -> nn.Linear:
    """Two classes with the boundary Σ u = 2; each entry moves the margin by 2."""
    net = nn.Linear(4, 2).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
        net.bias.copy_(torch.tensor([-2.0, 2.0]))
    return net


def some(m: int = 40) -> torch.Tensor:
    return torch.rand(m, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("attack", [fgsm, pgd])
@pytest.mark.parametrize("eps", [0.01, 0.1])
def test_on_a_linear_model_gradient_attacks_are_exact(attack, eps):
    net, u = line(), some()
    y = net(u).argmax(1)
    moved = attack(net, u, y, eps)
    assert float((moved - u).abs().max()) <= eps * (1 + 1e-12)
    reachable = (u.sum(1) - 2).abs() < 4 * eps
    assert reachable.any() and not reachable.all()
    assert torch.equal(~right(net, moved, y), reachable)


def test_l2_attacks_stay_in_their_ball_and_are_exact_on_a_linear_model():
    net, u = line(), some()
    y = net(u).argmax(1)
    moved = pgd(net, u, y, 0.2, norm="l2")
    assert float((moved - u).norm(dim=1).max()) <= 0.2 * (1 + 1e-12)
    distance = (u.sum(1) - 2).abs() / 2
    assert torch.equal(~right(net, moved, y), distance < 0.2)


def test_bounds_hold_and_the_same_seed_gives_the_same_bits():
    net, u = line(), some()
    y = net(u).argmax(1)
    first, again = (pgd(net, u, y, 0.3, (0.0, 1.0), seed=3) for _ in range(2))
    assert 0 <= float(first.min()) and float(first.max()) <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, pgd(net, u, y, 0.3, (0.0, 1.0), seed=4))


def test_radius_zero_leaves_everything():
    net, u = line(), some()
    y = net(u).argmax(1)
    assert torch.equal(pgd(net, u, y, 0.0), u) and torch.equal(fgsm(net, u, y, 0.0), u)
    assert torch.equal(corruptions.blur(u.reshape(-1, 2, 2), 0.0), u.reshape(-1, 2, 2))


def test_both_routes_through_a_model_with_feedback_lead_to_the_same_logits():
    model = implicit_model("full")
    judge, u = Judge(model), inputs(model, 20)
    assert len(judge.routes) == 2
    converged, unrolled = (route(u) for route in judge.routes)
    assert torch.allclose(converged, unrolled, atol=0.02)
    assert 0 < judge.residuals.largest <= 1e-10
    assert len(Judge(implicit_model("triangular")).routes) == 1


def test_corruptions_do_what_they_say():
    u = torch.rand(5, 8, 8, dtype=torch.float64)
    moved = (corruptions.corners(u, 0.1) - u).abs()
    assert torch.allclose(moved, torch.full_like(u, 0.1), atol=1e-14)
    assert torch.allclose(corruptions.brightness(u, 0.2, (0.0, 1.0)), (u + 0.2).clamp(0.0, 1.0))
    noise = corruptions.gaussian(u, 0.1, seed=1) - u
    assert 0.05 < float(noise.std()) < 0.15
    flat = torch.full((1, 8, 8), 0.3, dtype=torch.float64)
    assert torch.allclose(corruptions.blur(flat, 0.1), flat)
    assert corruptions.blur(u, 0.1).var() < u.var() / 4


@pytest.mark.parametrize("name", ["autoattack", "foolbox"])
def test_other_packages_agree_with_our_pgd(name):
    if not external.available(name):
        pytest.skip(f"{name} is not installed: pip install 'simplicit[attacks]'")
    net, u = line().float(), some(12).float().reshape(-1, 2, 2)
    net = nn.Sequential(nn.Flatten(), net)
    y = net(u).argmax(1)
    ours = right(net, pgd(net, u, y, 0.05, (0.0, 1.0)), y)
    if name == "autoattack":
        theirs = external.autoattack(net, u, y, 0.05, only=("apgd-ce",))
    else:
        theirs = external.foolbox_pgd(net, u, y, 0.05)
    assert float((theirs - u).abs().max()) <= 0.05 + 1e-6
    assert torch.equal(right(net, theirs, y), ours)


@pytest.mark.parametrize("name", ["autoattack", "foolbox"])
def test_a_package_that_is_missing_is_one_line(name, monkeypatch):
    from simplicit.errors import InputError

    def missing(_: str):
        raise ImportError

    monkeypatch.setattr("importlib.import_module", missing)
    u = some(2)
    run = external.autoattack if name == "autoattack" else external.foolbox_pgd
    with pytest.raises(InputError, match=r"pip install 'simplicit\[attacks\]'"):
        run(line(), u, torch.zeros(2, dtype=torch.int64), 0.1)
    assert not external.available(name)


def six_classes() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network whose classes are near each other, samples, and their classes."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 6))
    net, u = net.double(), torch.rand(400, 8, dtype=torch.float64)
    return net, u, net(u).argmax(1)


def test_climbs_towards_each_class_find_what_others_miss():
    net, u, y = six_classes()
    without, with_ = (right(net, pgd(net, u, y, 0.2, targets=k), y) for k in (0, 5))
    assert not (with_ & ~without).any()
    assert int(with_.sum()) < int(without.sum())


def test_where_a_relaxation_is_least_is_in_the_ball_and_feedback_is_refused():
    net, u, y = six_classes()
    u, y = u[:20], y[:20]
    moved = relaxation(as_model(net, u), u, y, 0.2, (0.0, 1.0))
    assert float((moved - u).abs().max()) <= 0.2 * (1 + 1e-12)
    assert 0 <= float(moved.min()) and float(moved.max()) <= 1
    wrong = ~right(net, moved, y)
    assert wrong.any() and torch.equal(moved[~wrong], u[~wrong])
    model = implicit_model("full")
    with pytest.raises(InputError, match="relaxation of a model with feedback"):
        relaxation(model, inputs(model, 2), torch.zeros(2, dtype=torch.long), 0.1)
