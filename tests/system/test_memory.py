from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.errors import InputError
from simplicit.solvers import solve
from simplicit.system import memory
from simplicit.system.memory import available, require


def test_what_fits_passes():
    require(1e3, "a little")


def test_a_gram_too_large_is_refused_with_the_figures_before_it_is_allocated():
    with pytest.raises(InputError, match=r"5000000 features.*200000.* GB needed.* GB free on cpu"):
        Gram(5_000_000, 1)


def test_a_solve_too_large_is_refused_before_it_starts(monkeypatch):
    V, T = torch.randn(20, 10), torch.randn(20, 3)
    problem = RowProblem(Gram.from_data(V, T), Penalty(l1=0.1))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    with pytest.raises(InputError, match="3 rows of 10 features.*needed"):
        solve(problem)


def control_group(folder: Path, version: int, limit: str, used: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    (folder / files[0]).write_text(f"{limit}\n")
    (folder / files[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{files[2]} {cache}\n")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """64 GB free on the machine; writes the process's control groups and asks what is free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * 10**9))

    def free(membership: str) -> int:
        (tmp_path / "membership").write_text(membership)
        return available(tmp_path / "groups", tmp_path / "membership")

    return free


def test_without_a_limit_the_machine_decides(machine, tmp_path):
    assert available(tmp_path / "groups", tmp_path / "none") == 64 * 10**9
    assert machine("0::/\n") == 64 * 10**9
    control_group(tmp_path / "groups", 2, "max", 10**9)
    assert machine("0::/\n") == 64 * 10**9


def test_a_containers_limit_counts_and_its_cache_is_free(machine, tmp_path):
    control_group(tmp_path / "groups", 2, str(8 * 10**9), 3 * 10**9, 10**9)
    assert machine("0::/\n") == 6 * 10**9
    assert machine("0::/a/b\n") == 6 * 10**9  # the name is the host's, the folder the container's


def test_the_tightest_of_nested_groups_counts(machine, tmp_path):
    control_group(tmp_path / "groups", 2, "max", 0)
    control_group(tmp_path / "groups" / "job", 2, str(4 * 10**9), 3 * 10**9)
    control_group(tmp_path / "groups" / "job" / "step", 2, str(9 * 10**9), 10**9)
    control_group(tmp_path / "groups" / "other", 2, "5", 0)
    assert machine("0::/job/step\n") == 10**9


def test_groups_of_the_first_version_count(machine, tmp_path):
    control_group(tmp_path / "groups" / "memory", 1, str(2**63 - 4096), 10**9)
    assert machine("5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n") == 64 * 10**9
    control_group(tmp_path / "groups" / "memory" / "x", 1, str(2 * 10**9), 3 * 10**9)
    assert machine("4:memory:/x\n") == 0  # a use above the limit leaves nothing


def test_what_a_container_does_not_hold_is_refused(monkeypatch, tmp_path):
    control_group(tmp_path, 2, str(10**9), 0)
    (tmp_path / "membership").write_text("0::/\n")
    free = partial(available, tmp_path, tmp_path / "membership")
    monkeypatch.setattr(memory, "available", free)
    with pytest.raises(InputError, match=r"2\.0 GB needed, (0\.\d|1\.0) GB free"):
        require(2e9, "a lot")
