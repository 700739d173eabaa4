"""What takes seconds, for the tests that share it: a finished run on the digits, and processes."""

import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import hypothesis
import jaxtyping
import pytest

# containers often keep no bytecode, and every process that a test starts would compile all anew
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# how long an example takes says how busy the machine is, not whether the property holds
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# before their first import, so that a failing assertion of theirs says its values, too
pytest.register_assert_rewrite("solver_suite", "degenerate_suite", "loop_suite", "small_run")

import shapes  # noqa: E402

# The import hook writes `@jaxtyping.jaxtyped(…)` above every function and class. Set here, as the
# search for doctests imports `shapes` a second time.
jaxtyping.jaxtyped = shapes.sampled

from simplicit.workers.processes import Processes  # noqa: E402
from small_run import small_run  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Checks of shapes are counted by the test, doctests of `src` included."""
    config.pluginmanager.register(shapes)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds, to be read only."""
    return small_run(tmp_path_factory.mktemp("session") / "finished", "seeds=[0,1]")


@pytest.fixture(scope="session")
def processes() -> Iterator[Executor]:
    """Two processes, which take seconds to start."""
    with Processes(2) as executor:
        yield executor


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "copied")
