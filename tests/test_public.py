"""The names that `simplicit` offers, which are imported when they are first used."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import simplicit

SOURCE = ast.parse(Path(simplicit.__file__).read_text("utf-8"))


def test_a_type_checker_reads_the_names_that_there_are():
    blocks = [node for node in SOURCE.body if isinstance(node, ast.If)]
    imports = [n for block in blocks for n in block.body if isinstance(n, ast.ImportFrom)]
    found = {alias.name: node.module for node in imports for alias in node.names}
    assert sorted(found) == simplicit.__all__ == sorted(simplicit.__all__)
    for name, module in found.items():
        assert getattr(simplicit, name) is getattr(import_module(str(module)), name)


LINES = [
    "from simplicit import *; implicitize, Ball",
    "import simplicit; simplicit.implicitize",
    "import simplicit; simplicit.explicit.train, simplicit.data.load",
    "from simplicit import data, explicit; data.load",
    "from simplicit import certify; import simplicit.bounds.certify; certify.__name__",
    "import simplicit; assert set(simplicit.__all__) <= set(dir(simplicit))",
]

FORKS = """
import os, sys, traceback
import numba, torch.export  # once, as they take longest
for line in sys.argv[1:]:
    assert "simplicit" not in sys.modules
    if not (child := os.fork()):
        try:
            exec(line, {})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, line
"""
"""Runs every line in a process of its own, where nothing of simplicit has been imported."""


def test_names_and_modules_are_found_in_a_new_process():
    subprocess.run([sys.executable, "-c", FORKS, *LINES], check=True)
