import copy

import pytest
import torch

from conv_networks import CONVOLUTIONAL, KEPT, images, model, network
from random_models import implicit_model, inputs, same
from simplicit.bounds.certify import certify
from simplicit.equations.phi import Phi
from simplicit.equations.stacked import Block
from simplicit.errors import InputError
from simplicit.lab.evaluate.attacks import pgd
from simplicit.model.implicit import ImplicitModel
from simplicit.refine.finetune import WIDTH, WORST_LR, finetune, worst_rate
from simplicit.refine.worst_case import Ramp, worst_logits


@pytest.mark.parametrize("structure", ["triangular", "layered"])
def test_the_bound_holds_at_random_points_and_is_tight_without_a_ball(structure):
    model = implicit_model(structure)
    u = inputs(model, 30).sigmoid()
    y = torch.arange(30) % 2
    bound = worst_logits(model, u, y, 0.1)
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        shift = 0.2 * torch.rand(u.shape, generator=generator, dtype=u.dtype) - 0.1
        out = model((u + shift).clamp(0, 1))
        assert (out - out.gather(1, y[:, None]) <= bound + 1e-9).all()
    out = model(u)
    exact = out - out.gather(1, y[:, None])
    assert torch.allclose(worst_logits(model, u, y, 0.0), exact, atol=1e-9)


@pytest.mark.parametrize("structure", ["triangular", "layered"])
def test_no_attack_beats_the_bound_and_none_its_loss(structure):
    model = implicit_model(structure).requires_grad_(False)
    u = inputs(model, 30).sigmoid()
    y = model(u).argmax(1)
    bound = worst_logits(model, u, y, 0.05)
    out = model(pgd(model, u, y, 0.05, (0.0, 1.0)))
    assert (out - out.gather(1, y[:, None]) <= bound + 1e-9).all()
    attacked, worst = (
        torch.nn.functional.cross_entropy(z, y, reduction="none") for z in (out, bound)
    )
    assert (attacked <= worst + 1e-9).all() and (attacked < worst).any()


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONAL if name not in KEPT])
def test_the_bound_holds_for_convolutions_pooling_and_shortcuts(name):
    some, u = model(name), images(8).sigmoid()
    y = torch.arange(8) % 4
    with torch.no_grad():
        out = some(u)
        exact = out - out.gather(1, y[:, None])
        torch.testing.assert_close(worst_logits(some, u, y, 0.0), exact, rtol=1e-9, atol=1e-9)
        bound = worst_logits(some, u, y, 0.1)
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            shift = 0.2 * torch.rand(u.shape, generator=generator, dtype=u.dtype) - 0.1
            out = some((u + shift).clamp(0, 1))
            assert (out - out.gather(1, y[:, None]) <= bound + 1e-9).all()
    worst_logits(some, u, y, 0.1).sum().backward()
    assert all(weight.grad is not None for weight in some.learned)


def test_finetuning_for_the_worst_case_bounds_convolutions_closer():
    net, u = network("in place, reused"), images(40).sigmoid()
    some = model("in place, reused")
    y = net(u).argmax(1)
    plain, robust = (
        finetune(some, net, u, epochs=6, batch_size=10, eps=eps, lr=0.01) for eps in (0.0, 0.05)
    )
    with torch.no_grad():
        loose, close = (
            float(torch.nn.functional.cross_entropy(worst_logits(m, u, y, 0.05), y))
            for m in (plain, robust)
        )
    assert close < loose
    for new, old in zip(robust.learned, some.learned, strict=True):
        assert not new[old == 0].any()


def test_models_with_feedback_are_refused():
    with pytest.raises(InputError, match="triangular"):
        worst_logits(implicit_model("full"), torch.rand(2, 2, 3), torch.zeros(2).long(), 0.1)


def test_the_ramp_ends_at_one():
    ramp = Ramp(10)
    values = [ramp() for _ in range(10)]
    assert values == sorted(values) and values[0] == 0.2 and values[-1] == 1


@pytest.mark.parametrize("rows", [WIDTH // 2, WIDTH, 8 * WIDTH])
def test_wider_models_take_shorter_steps(rows):
    eye = torch.eye(rows)
    model = ImplicitModel(
        0 * eye, eye, eye[:2], 0 * eye[:2],
        blocks=[Block("fc", rows, Phi("relu"))],
        structure="layered", input_shape=(rows,), reference_nonzeros=rows,
    )  # fmt: skip
    assert worst_rate(model) * max(rows, WIDTH) == pytest.approx(WORST_LR * WIDTH)


def test_classes_are_those_of_the_network_whatever_they_are_called():
    net = implicit_model("layered", dtype=torch.float32)
    u = inputs(net, 60).sigmoid()

    def flipped(model):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.learned[-1].copy_(other.learned[-1].flip(0))
            other.biases[-1].copy_(other.biases[-1].flip(0))
        return other

    tuned, other = (finetune(m, m, u, epochs=2, eps=0.02) for m in (net, flipped(net)))
    with torch.no_grad():
        torch.testing.assert_close(tuned(u), other(u).flip(1), rtol=1e-3, atol=1e-3)


def test_finetuning_for_the_worst_case_certifies_more():
    model = implicit_model("triangular", same(Phi("relu")), dtype=torch.float32)
    net = implicit_model("triangular", same(Phi("relu")), dtype=torch.float32)
    u = inputs(model, 200).sigmoid()
    y = net(u).argmax(1)
    plain, robust = (finetune(model, net, u, epochs=8, batch_size=20, eps=e) for e in (0.0, 0.05))
    radii = [
        float(certify(m, u[:50], y[:50], 0.05, methods=["interval"]).radius.mean())
        for m in (plain, robust)
    ]
    assert radii[1] > radii[0]
    for new, old in zip(robust.learned, model.learned, strict=True):
        assert ((new == 0) == (old == 0)).all()
