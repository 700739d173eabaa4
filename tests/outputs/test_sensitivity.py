import pytest
from torch import nn

from conv_networks import images
from example_networks import seeded
from simplicit.calibration.batches import batches
from simplicit.calibration.rows import channels
from simplicit.capture.read import capture
from simplicit.outputs.sensitivity import channel_sensitivity


class Head(nn.Module):
    """A convolution whose outputs are summed up by position or kept apart."""

    def __init__(self, pool):
        super().__init__()
        self.first, self.pool = nn.Conv2d(3, 4, 1), pool
        self.last = nn.Linear(4 if pool else 4 * 36, 300)

    def forward(self, u):
        x = self.first(u)
        return self.last(x.mean((2, 3)) if self.pool else x.flatten(1))


def coherence(pool):
    u = images(60)
    equations = capture(seeded(lambda: Head(pool)).eval(), u)
    first, last = channel_sensitivity(equations, channels(equations), batches(u, 20))
    assert last.coherence == pytest.approx(0.0)  # one position
    return first


def test_before_an_average_only_the_sum_of_errors_counts():
    assert coherence(True).coherence == pytest.approx(1.0)


def test_positions_with_weights_of_their_own_do_not_add_up():
    found = coherence(False)
    assert found.coherence < 0.1
    assert found.coupling[0].diagonal().min() > 0
