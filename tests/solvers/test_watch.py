"""The clock and callback of a call, beside the tiles that threads solve."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

from simplicit.solvers.watch import Progress, Watch


def test_tiles_that_are_done_at_once_all_count():
    seen: list[Progress] = []
    watch, met = Watch(None, seen.append, total=6), Barrier(3)

    def tile(row: int) -> None:
        for done in (0, 2):
            watch.look(torch.tensor([row]), torch.zeros(1), 1, done)
            met.wait()  # none is finished before all have reported
        watch.finish(2)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(tile, range(3)))
    assert [one.solved for one in seen] == [0, 0, 0, 2, 4, 6]
    watch.look(torch.tensor([0]), torch.zeros(1), 1, 0)
    assert seen[-1].solved == 6
