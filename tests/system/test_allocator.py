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


FRAGMENTS = """
import psutil, sys
from simplicit.system.allocator import give_back, keep_freed

assert keep_freed()
held = lambda: psutil.Process().memory_info().rss
blocks = [bytearray(b"1") * 2**22 for _ in range(40)]
before = held()
del blocks[::2]  # each between two that stay
kept = before - held()
given = give_back(int(sys.argv[1]))
print(kept, before - held(), int(given))
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


@glibc
@pytest.mark.parametrize(("beyond", "given"), [(2**24, True), (2**28, False)])
def test_freed_blocks_between_others_are_given_back_where_there_are_many(beyond, given):
    command = [sys.executable, "-c", FRAGMENTS, str(beyond)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kept, less, done = map(int, said.split())
    assert done == given
    assert kept < 2**22
    assert (less > 19 * 2**22) if given else (less < 2**22)


@glibc
def test_pages_are_taken_once_not_each_time():
    assert faults("keep") < faults() / 5


def test_another_allocator_is_left_as_it_is(monkeypatch):
    from simplicit.system import allocator

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_freed()
    assert not allocator.give_back(0)
