"""More calibration images from those there are: mirrored, and shifted by a few pixels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simplicit.errors import InputError

SHIFT = 8
"""Images are shifted by at most a part of this of their height and width."""


def augmented(
    images: Float[Tensor, "m *shape"], copies: int, seed: int
) -> Float[Tensor, "n *shape"]:
    """List images and copies of them.

    Args:
        images: Images, each (channels, height, width).
        copies: Copies of each in the result: 1 is the image itself, the 2nd its mirror image; every
            further one is shifted along both axes at random, and every other of them mirrored. What
            a shift uncovers is filled by reflection.
        seed: Of the shifts.

    Returns:
        All images, then their second copies, and so on.

    Raises:
        InputError: If there is to be more than one copy of inputs that are not images.
    """
    if copies == 1:
        return images
    if images.ndim != 4 or min(images.shape[2:]) < 2:
        raise InputError(
            f"augmentation {copies}: accepted for inputs of shape {tuple(images.shape[1:])} is 1; "
            "images of shape (channels, height, width) can be mirrored and shifted"
        )
    generator = torch.Generator().manual_seed(seed)
    most = [size // SHIFT for size in images.shape[2:]]
    parts, every = [images, images.flip(3)], torch.arange(len(images))[:, None, None]
    around = F.pad(images, [most[1], most[1], most[0], most[0]], mode="reflect")
    for copy in range(2, copies):
        y, x = (torch.randint(2 * n + 1, (len(images),), generator=generator) for n in most)
        rows = y[:, None, None] + torch.arange(images.shape[2])[:, None]
        columns = x[:, None, None] + torch.arange(images.shape[3])
        part = around[every, :, rows, columns].movedim(3, 1)
        parts.append(part.flip(3) if copy % 2 else part)
    return torch.cat(parts)
