import os

import pytest
import torch

from simplicit.system import threads


def test_available_counts_the_processors_this_process_may_use(monkeypatch):
    assert 1 <= threads.available() <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert threads.available() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.available() == 1


def test_one_thread_inside_and_as_before_after():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with threads.single_threaded():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyboardInterrupt), threads.single_threaded():
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
