"""Runs on scikit-learn's digits that take a second or two."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.lab.config import config
from simplicit.lab.run.run import run

DIGITS = Path(__file__).parents[1] / "configs" / "digits.yaml"

SMALL = (
    "explicit.architecture=[64,12,8,10]",
    "explicit.epoch=2",
    "explicit.lr=0.01",
    "implicit.training_size=0.3",
    "implicit.sweeps=4",
    "evaluation.speed=false",
)
"""Overrides that make `DIGITS` small; its budget stays."""

NO_BUDGET = ("implicit.sparsity=null", "implicit.sweeps=null")
"""Overrides after those: without a budget there are no sweeps."""

N0 = 64 * 12 + 12 * 8 + 8 * 10


_CAPTURED: dict[bytes, StateEquations] = {}


def capture_once(net: nn.Module, example: Tensor, *inputs: Any) -> StateEquations:
    """As `capture`; networks with the same weights, as these runs train, are read once."""
    key = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
    if key not in _CAPTURED:
        _CAPTURED[key] = capture(net, example)
    return _CAPTURED[key]


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a network once, and draw no figures, which take longest."""
    for module in ("fit", "lab.run.seed"):
        monkeypatch.setattr(f"simplicit.{module}.capture", capture_once)
    monkeypatch.setattr("simplicit.lab.run.run.plots.draw_all", lambda *_: [])


def settings(*overrides: str) -> config.Config:
    return config.load(DIGITS, [*SMALL, *overrides])


def small_run(folder: Path, *overrides: str) -> Path:
    """Do a run.

    Returns:
        Its folder.
    """
    run(settings(*overrides), folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
