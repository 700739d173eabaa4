"""Freed memory is used again, in a process of its own, as it cannot be undone."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
from simplicit.system.allocator import keep_freed

if "keep" in sys.argv:
    assert keep_freed()
bytearray(2**26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytearray(b"1") * 2**26
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*options: str) -> int:
    command = [sys.executable, "-c", CODE, *options]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_pages_are_taken_once_not_each_time():
    assert faults("keep") < faults() / 5


def test_another_allocator_is_left_as_it_is(monkeypatch):
    from simplicit.system import allocator

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_freed()
