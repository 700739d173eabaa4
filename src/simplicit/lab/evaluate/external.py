"""Attacks of other packages, the extra `attacks`: AutoAttack (pyautoattack) and foolbox."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from simplicit.errors import InputError
from simplicit.lab.evaluate.attacks import Predict
from simplicit.system.extras import package


class _AsImages(nn.Module):
    """Logits of images (m, 1, height, width), whatever shape and dtype the model takes."""

    def __init__(self, predict: Predict, like: Tensor) -> None:
        nn.Module.__init__(self)
        self.call, self.shape, self.like = predict, like.shape[1:], like

    def forward(self, images: Tensor) -> Tensor:
        return self.call(images.reshape(-1, *self.shape).to(self.like)).to(images)


def autoattack(
    predict: Predict,
    u: Float[Tensor, "m *shape"],
    y: Int[Tensor, "m"],
    eps: float,
    *,
    seed: int = 0,
    only: tuple[str, ...] = (),
) -> Tensor:
    """Run AutoAttack, standard version (Croce, Hein 2020), in l∞ on inputs in [0, 1].

    Args:
        predict: What is attacked.
        u: Inputs in [0, 1].
        y: Their classes.
        eps: Radius.
        seed: Of its random parts.
        only: Names of some of its attacks, e.g. `apgd-ce`, instead of the standard four.

    Returns:
        Other inputs in the balls.
    """
    module = package("pyautoattack")
    options: dict[str, Any] = {"version": "custom", "attacks": list(only)} if only else {}
    model = _AsImages(predict, u)
    attack = module.AutoAttack(model, eps=eps, seed=seed, device=u.device, **options)
    found = attack.run_standard_evaluation(_images(u), y, batch_size=max(1, len(u)))
    found = found[0] if isinstance(found, tuple) else found
    return found.reshape(u.shape).to(u)


def foolbox_pgd(
    predict: Predict, u: Float[Tensor, "m *shape"], y: Int[Tensor, "m"], eps: float
) -> Tensor:
    """Run foolbox's l∞ PGD (40 steps) on inputs in [0, 1].

    Args:
        predict: What is attacked.
        u: Inputs in [0, 1].
        y: Their classes.
        eps: Radius.

    Returns:
        Other inputs in the balls.
    """
    module = package("foolbox")
    model = module.PyTorchModel(_AsImages(predict, u).eval(), bounds=(0, 1), device=u.device)
    attack = module.attacks.LinfProjectedGradientDescentAttack()
    _, found, _ = attack(model, _images(u), y, epsilons=eps)
    return found.reshape(u.shape).to(u)


def available(name: str) -> bool:
    """Say whether an attack's package is installed.

    Args:
        name: `autoattack` or `foolbox`.

    Returns:
        True if it is.
    """
    try:
        package({"autoattack": "pyautoattack"}.get(name, name))
    except InputError:
        return False
    return True


# AutoAttack needs (m, channels, height, width) in float32
def _images(u: Tensor) -> Tensor:
    flat = u.float()
    return (
        flat if u.ndim == 4 else flat.reshape(len(u), 1, *(u.shape[1:] if u.ndim == 3 else (1, -1)))
    )
