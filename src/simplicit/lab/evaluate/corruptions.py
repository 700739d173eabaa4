"""Changes of images that nobody chose: noise, brightness, blur."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Bounds = tuple[float, float] | None

BLUR = 20.0
"""Standard deviation of the blur in pixels, at eps = 1: one pixel at 0.05."""


def gaussian(
    u: Float[Tensor, "m *shape"], eps: float, bounds: Bounds = None, seed: int = 0
) -> Tensor:
    """Add Gaussian noise of standard deviation eps; it leaves the l∞ ball.

    Args:
        u: Inputs.
        eps: Standard deviation.
        bounds: Least and largest value of an input.
        seed: Of the noise.

    Returns:
        Noisy inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(u.shape, generator=generator, dtype=u.dtype)
    return _clip(u + eps * noise.to(u.device), bounds)


def corners(
    u: Float[Tensor, "m *shape"], eps: float, bounds: Bounds = None, seed: int = 0
) -> Tensor:
    """Go to a random corner of the l∞ ball.

    Args:
        u: Inputs.
        eps: Radius.
        bounds: Least and largest value of an input.
        seed: Of the corners.

    Returns:
        Inputs moved by eps or −eps in every entry.
    """
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, u.shape, generator=generator).to(u) * 2 - 1
    return _clip(u + eps * sign, bounds)


def brightness(u: Float[Tensor, "m *shape"], eps: float, bounds: Bounds = None) -> Tensor:
    """Make everything brighter by eps.

    Args:
        u: Inputs.
        eps: By how much.
        bounds: Least and largest value of an input.

    Returns:
        Brighter inputs.
    """
    return _clip(u + eps, bounds)


def blur(u: Float[Tensor, "m *shape"], eps: float) -> Tensor:
    """Blur images with a Gaussian of standard deviation `BLUR` · eps pixels.

    Args:
        u: Images (m, height, width) or (m, channels, height, width).
        eps: Strength.

    Returns:
        Blurred images; outside an image is its edge.
    """
    width = BLUR * eps
    if width == 0:
        return u
    reach = max(1, min(round(3 * width), min(u.shape[-2:]) - 1))
    at = torch.arange(-reach, reach + 1, dtype=u.dtype, device=u.device)
    kernel = torch.exp(-0.5 * (at / width) ** 2)
    kernel = kernel / kernel.sum()
    images = u.reshape(-1, 1, *u.shape[-2:])
    images = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    images = F.conv2d(F.conv2d(images, kernel.reshape(1, 1, 1, -1)), kernel.reshape(1, 1, -1, 1))
    return images.reshape(u.shape)


def _clip(u: Tensor, bounds: Bounds) -> Tensor:
    return u if bounds is None else u.clamp(*bounds)
