import pytest
import torch

from conv_networks import CONVOLUTIONAL, images, structured
from simplicit.calibration.batches import batches
from simplicit.calibration.frontier import Frontier
from simplicit.errors import InputError
from simplicit.system import memory


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("own", [True, False])
def test_both_networks_are_replayed_and_what_is_read_no_more_is_dropped(name, own):
    equations = structured(name)
    every, u = (*equations.hidden, equations.output), images(5)
    Z, Y = equations.replay(u)
    frontier = Frontier(equations, batches(u, 3), own)
    assert frontier.m == 5
    for index, equation in enumerate(every):
        sources, targets = zip(*frontier.batches(), strict=True)
        torch.testing.assert_close(torch.cat(targets), [*Z, Y][index])
        found = torch.cat([equation.preactivation(s) for s in sources])
        torch.testing.assert_close(found, [*Z, Y][index])
        needed = {s for later in every[index:] for s in later.sources if s < index}
        assert {i for i, s in enumerate(sources[0][:-1]) if s.numel()} == needed - {-1}
        if index < len(equations.hidden):
            frontier.advance(equation)


def test_states_that_do_not_fit_are_refused_before_they_are_computed(monkeypatch):
    equations = structured("resnet, option A")
    asked = []
    monkeypatch.setattr(memory, "require", lambda size, what, device: asked.append(size))
    Frontier(equations, batches(images(5), 3), own=True)
    assert asked == [5 * 8 * 144 * (2 * 3 + 1)]
    monkeypatch.undo()
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("M", (), {"available": 9}))
    with pytest.raises(InputError, match="states of 5 calibration inputs"):
        Frontier(equations, batches(images(5), 3), own=True)
