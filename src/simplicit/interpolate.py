"""More unlabelled inputs out of those there are: points between near neighbours.

SMOTE's points (Chawla, Bowyer, Hall, Kegelmeyer, "SMOTE: Synthetic Minority Over-sampling
Technique", 2002), here without classes: the teacher says what each is. Models matched on the
outputs fit few thousand samples too closely; points between these hold them back.
"""

import torch
from torch import Tensor

from .states import Batch

NEIGHBOURS = 5
"""Nearest others that one is drawn from, as in SMOTE."""

BLOCK = 4096
"""Samples among which neighbours are looked for: time grows with m times this."""

BETWEEN = (0.3, 0.7)
"""Where the point is, as a part of the way; chosen on held-out training images of Fashion-MNIST."""


def interpolate(inputs: Batch) -> Batch:
    """Draw one point between each sample and one of its nearest; the same ones every time.

    Args:
        inputs: Samples (m, …).

    Returns:
        As many further samples; those of a single sample are that sample.
    """
    random = torch.Generator().manual_seed(0)
    return torch.cat([_between(block, random) for block in inputs.split(BLOCK)])


def _between(inputs: Tensor, random: torch.Generator) -> Tensor:
    flat = inputs.flatten(1)
    distances = torch.cdist(flat, flat).fill_diagonal_(torch.inf)
    count = min(NEIGHBOURS, len(flat) - 1)
    if count < 1:
        return inputs
    nearest = distances.topk(count, largest=False).indices
    chosen = torch.randint(0, count, (len(flat), 1), generator=random).to(nearest.device)
    low, high = BETWEEN
    part = low + (high - low) * torch.rand(len(flat), 1, generator=random).to(flat)
    other = flat[nearest.gather(1, chosen)[:, 0]]
    return torch.lerp(flat, other, part).view_as(inputs)
