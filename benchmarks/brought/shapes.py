"""A U-Net that finds discs and squares in noise: two kinds of pixels and the ground."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, KINDS = 32, 3


class UNet(nn.Module):
    """Two levels, transposed convolutions on the way up, one class a pixel."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
            )  # fmt: skip

        self.a, self.b, self.c = block(1, 12), block(12, 24), block(24, 48)
        self.up2, self.up1 = nn.ConvTranspose2d(48, 24, 2, 2), nn.ConvTranspose2d(24, 12, 2, 2)
        self.d, self.e, self.out = block(48, 24), block(24, 12), nn.Conv2d(12, KINDS, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        y = self.d(torch.cat([self.up2(c), b], 1))
        return self.out(self.e(torch.cat([self.up1(y), a], 1)))


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images with a disc and a square each, and the kind of every pixel.

    Args:
        count: How many.
        seed: Of the draw.

    Returns:
        (m, 1, side, side) and (m, side, side).
    """
    draw = torch.Generator().manual_seed(seed)
    at = torch.arange(SIDE).float()
    centres = 6 + (SIDE - 12) * torch.rand(count, 2, 2, 1, 1, generator=draw)
    sizes = 3 + 4 * torch.rand(count, 2, 1, 1, generator=draw)
    x, y = at[None, None, None], at[None, None, :, None]
    across, down = (x - centres[:, :, 0]).abs(), (y - centres[:, :, 1]).abs()
    disc = (across.square() + down.square())[:, 0] < sizes[:, 0].square()
    square = (torch.maximum(across, down) < sizes)[:, 1]
    kind = torch.where(square, 2, torch.where(disc, 1, 0))
    bright = 0.4 + 0.6 * torch.rand(count, 1, 1, generator=draw)
    image = torch.where(kind > 0, bright, 0.0)
    image = image + 0.35 * torch.randn(image.shape, generator=draw)
    return image[:, None], kind


def trained() -> tuple[nn.Module, Tensor, Any]:
    """Train the network.

    Returns:
        The network, calibration inputs, and what it is worth: the mean intersection over union of
        discs and squares on test images.
    """
    torch.manual_seed(0)
    net = UNet()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, 600)
    for step in range(600):
        x, y = samples(32, step)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        schedule.step()
    net.eval()
    u, (x, y) = samples(256, 10**6)[0], samples(1000, 10**6 + 1)

    @torch.no_grad()
    def worth(some: Any) -> float:
        found = torch.cat([some(part).argmax(1) for part in x.split(100)])
        each = [((found == k) & (y == k)).sum() / ((found == k) | (y == k)).sum() for k in (1, 2)]
        return float(sum(each) / len(each))

    return net, u, worth
