"""An LSTM that predicts the next value of a series: two waves of unlike periods, and noise."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LENGTH, HIDDEN = 24, 32


class Forecast(nn.Module):
    """The value after the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(1, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw windows of series, and the values after them.

    Args:
        count: How many.
        seed: Of the draw.

    Returns:
        (m, length, 1) and (m, 1).
    """
    draw = torch.Generator().manual_seed(seed)
    periods = torch.tensor([[7.0, 17.0]]) * (1 + 0.1 * torch.rand(count, 2, generator=draw))
    phases = 6.283 * torch.rand(count, 2, generator=draw)
    t = torch.arange(LENGTH + 1)[:, None, None]
    waves = torch.sin(6.283 * t / periods + phases).sum(2).T
    series = waves + 0.05 * torch.randn(count, LENGTH + 1, generator=draw)
    return series[:, :-1, None], waves[:, -1:]


def trained() -> tuple[nn.Module, Tensor, Any]:
    """Train the network.

    Returns:
        The network, calibration inputs, and what it is worth: R² on test data.
    """
    torch.manual_seed(0)
    net = Forecast()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(1500):
        x, y = samples(128, step)
        optimizer.zero_grad()
        F.mse_loss(net(x), y).backward()
        optimizer.step()
    u, (x, y) = samples(1000, 10**6)[0], samples(2000, 10**6 + 1)

    @torch.no_grad()
    def worth(some: Any) -> float:
        return 1 - float((some(x) - y).square().mean() / (y - y.mean()).square().mean())

    return net.eval(), u, worth
