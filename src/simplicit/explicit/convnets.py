"""Convolutional networks by name; inputs are images in [0, 1], which they normalise themselves.

The two residual networks have the layers and the parameter names of published weights; where the
names differ from He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), the class
says so.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Maps = Float[Tensor, "m _ _ _"]
"""Channels first; height and width may change on the way."""

Logits = Float[Tensor, "m classes"]


class Normalise(nn.Module):
    """(u − mean) / std, channel by channel; neither is part of the state dict.

    Args:
        mean: One number a channel.
        std: One number a channel, above 0.

    Raises:
        ValueError: If they differ in length or a standard deviation is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError("mean and std need one number a channel each, std above 0")
        for name, values in (("mean", mean), ("std", std)):
            tensor = torch.tensor([float(value) for value in values]).view(1, -1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, u: Maps) -> Maps:
        """Normalise.

        Returns:
            Images of the same shape.
        """
        return (u - self.mean) / self.std


class LeNet(nn.Module):
    """For grey images of 28 x 28: LeNet-5 (LeCun et al., 1998) with ReLU and max-pooling.

    Args:
        classes: Number of logits.
        mean: Of the pixels.
        std: Of the pixels.
    """

    def __init__(
        self, classes: int = 10, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, u: Maps) -> Logits:
        """Classify.

        Args:
            u: Images (m, 1, 28, 28).

        Returns:
            Logits.
        """
        x = F.max_pool2d(F.relu(self.conv1(self.normalise(u))), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class Subsample(nn.Module):
    """He et al.'s shortcut A: every other pixel, and zeros for the channels that are new.

    Args:
        new: Channels to add, half before and half behind those there are.
    """

    def __init__(self, new: int) -> None:
        super().__init__()
        self.new = new

    def forward(self, x: Maps) -> Maps:
        """Shorten.

        Returns:
            Maps of half the height and width with more channels.
        """
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and the shortcut around them.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the first convolution.
        shortcut: What the input goes through before the sum.
        phi: What the sum goes through.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        shortcut: nn.Module,
        phi: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut, self.phi = shortcut, phi

    def forward(self, x: Maps) -> Maps:
        """Compute the block.

        Returns:
            Its output.
        """
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y = y + self.shortcut(x)
        return y if self.phi is None else self.phi(y)


class ResNet20(nn.Module):
    """He et al.'s network for CIFAR-10: 16, 32, 64 channels, shortcuts without parameters.

    Args:
        classes: Number of logits.
        mean: Of the colours; that of the published weights.
        std: Of the colours.
    """

    def __init__(
        self,
        classes: int = 10,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16)
        self.layer2 = self._stage(16, 32)
        self.layer3 = self._stage(32, 64)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int) -> nn.Sequential:
        new = outputs - inputs
        first = Block(
            inputs, outputs, 2 if new else 1, Subsample(new) if new else nn.Identity(), F.relu
        )
        rest = (Block(outputs, outputs, 1, nn.Identity(), F.relu) for _ in range(2))
        return nn.Sequential(first, *rest)

    def forward(self, u: Maps) -> Logits:
        """Classify.

        Args:
            u: Images (m, 3, height, width), usually 32 x 32.

        Returns:
            Logits.
        """
        x = F.relu(self.bn1(self.conv1(self.normalise(u))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


class StagewiseResNet20(nn.Module):
    """A residual network for CIFAR-100 whose sums go on without ReLU until the end of a stage.

    Its stem has 64 channels, its stages 16, 32 and 64; where the shape changes the shortcut is a
    1 x 1 convolution with batch norm; the classifier reads 2 x 2 averages.

    Args:
        classes: Number of logits.
        mean: Of the colours; that of CIFAR-100.
        std: Of the colours.
    """

    def __init__(
        self,
        classes: int = 100,
        mean: Sequence[float] = (0.5071, 0.4867, 0.4408),
        std: Sequence[float] = (0.2675, 0.2565, 0.2761),
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._stage(64, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(4 * 64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )
        first = Block(inputs, outputs, stride, shortcut, None)
        rest = (Block(outputs, outputs, 1, nn.Identity(), None) for _ in range(2))
        return nn.Sequential(first, *rest)

    def forward(self, u: Maps) -> Logits:
        """Classify.

        Args:
            u: Images (m, 3, 32, 32).

        Returns:
            Logits.
        """
        x = F.relu(self.bn1(self.conv1(self.normalise(u))))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = F.relu(stage(x))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))
