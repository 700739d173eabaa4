"""What `simplicit inspect` is given: a configuration, or a class by its import path."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from simplicit.capture.read import capture
from simplicit.data import datasets as data
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.explicit import by_name as networks
from simplicit.lab.config import config
from simplicit.lab.run.seed import SeedRun


def equations_of(target: str, overrides: Sequence[str], shape: str | None) -> StateEquations:
    """Build a network with its configured or freshly drawn weights, and read it.

    Args:
        target: A YAML file, or `package.module:Class`.
        overrides: `key=value` for the YAML file.
        shape: Of one sample of a class, numbers with commas between them.

    Returns:
        Its state equations.

    Raises:
        InputError: If there is no such network, or it cannot be read.
    """
    if ":" not in target or Path(target).exists():
        if shape is not None:
            raise InputError("--shape: only with a class; a configuration names its dataset")
        settings = config.load_each(Path(target), overrides)[0]  # all with the same network
        dataset = data.load(settings.evaluation.dataset, settings.data_dir)
        with tempfile.TemporaryDirectory() as folder:  # where no trained weights are yet
            return SeedRun(settings, dataset, settings.seeds[0], Path(folder)).read()
    if overrides:
        raise InputError(f"{overrides[0]!r}: accepted only with a configuration")
    net = networks.build(target, ())
    return capture(net, torch.randn(2, *_sizes(shape)))


def _sizes(shape: str | None) -> list[int]:
    parts = (shape or "").split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--shape {shape}: accepted is the shape of one sample, e.g. 3,32,32")
    return [int(part) for part in parts]
