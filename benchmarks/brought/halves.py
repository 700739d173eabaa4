"""LeNet on Fashion-MNIST, as training on several devices leaves it: wrapped, and in bfloat16."""

from typing import Any

import torch
from torch import Tensor, nn

from simplicit.data.datasets import load
from simplicit.explicit.convnets import LeNet
from simplicit.explicit.training import train

CALIBRATION = 2000


def trained() -> tuple[nn.Module, Tensor, Any]:
    """Train the network on all but the calibration inputs.

    Returns:
        The network in `DataParallel` and bfloat16, calibration inputs, and its test accuracy.
    """
    dataset = load("FashionMNIST").with_channel()
    torch.manual_seed(0)
    net, x, y = LeNet(), dataset.train_inputs, dataset.train_labels
    train(net, x[CALIBRATION:], y[CALIBRATION:], epochs=5, lr=2e-3, decay=True, batch_size=128)
    half = nn.DataParallel(net.bfloat16()).eval()

    @torch.no_grad()
    def worth(some: Any) -> float:
        dtype = next(some.parameters()).dtype
        parts = dataset.test_inputs.to(dtype).split(1000)
        found = torch.cat([some(part).argmax(1) for part in parts])
        return float((found == dataset.test_labels).float().mean())

    return half, x[:CALIBRATION].bfloat16(), worth
