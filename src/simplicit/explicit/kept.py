"""The state of a training on disk after an epoch: one that was stopped goes on, bit by bit."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from simplicit.model.archive import sealed
from simplicit.system import files

EVERY, AT_THE_END = 10.0, 1.0
"""Seconds of work after which an epoch's state is kept, and that of the last one. Chosen: what is
repeated is bearable, and trainings of a second write nothing."""


@dataclass
class Trainings:
    """Trainings that follow one another, each with its state in a file of a folder.

    Those that are done are found again by their number, so that a method of many trainings may
    simply begin anew.

    Args:
        folder: Where they are kept; None keeps nothing.
        number: How many there were.
        earlier: Seconds that they took before a stop.
    """

    folder: Path | None = None
    number: int = 0
    earlier: float = 0.0

    def next(self) -> Path | None:
        """Say where the next one is kept.

        Returns:
            Its file; None where nothing is kept.
        """
        self.number += 1
        return self.folder and self.folder / f"training-{self.number}.safetensors"


@dataclass
class State:
    """All that the next steps of a training depend on.

    Args:
        path: Where it is kept; None keeps nothing.
        net: The network.
        optimizer: Of its parameters.
        rate: Changes the learning rate.
        also: Tensors that the loss, or what is done after a step, changes in place.
        device: Where the training is.
        problem: What tells this training from others, the data first.
    """

    path: Path | None
    net: nn.Module
    optimizer: Optimizer
    rate: LRScheduler
    also: Mapping[str, Tensor]
    device: torch.device
    problem: tuple[Any, ...]
    last: float = field(default_factory=time.monotonic)
    begin: float = field(default_factory=time.monotonic)
    earlier: float = 0.0
    _start: str = ""
    _digest: str = ""

    def __post_init__(self) -> None:
        if self.path is not None:  # before the first step
            self._start = sealed.digest(*self._changed().values())

    def restore(self) -> int:
        """Go back to the state that was kept.

        Returns:
            How many epochs are done; 0 where none was kept, or by another training.
        """
        if self.path is None or not self.path.exists():
            return 0
        try:
            tensors, says = sealed.read(self.path)
            records = json.loads(says["records"])
        except (sealed.Damaged, KeyError, ValueError) as error:
            files.set_aside(self.path, str(error), "the training begins anew")
            return 0
        if says.get("problem") != self._problem():
            return 0
        with torch.no_grad():
            for name, tensor in self._changed().items():
                tensor.copy_(tensors[name])
        slots: dict[int, dict[str, Any]] = {int(k): v for k, v in records["slots"].items()}
        for name, tensor in tensors.items():
            kind, *where = name.split(" ")
            if kind == "optimizer":
                slots.setdefault(int(where[0]), {})[where[1]] = tensor
        self.optimizer.load_state_dict({"state": slots, "param_groups": records["groups"]})
        self.rate.load_state_dict(records["rate"])
        torch.set_rng_state(tensors["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random there"], self.device)
        self.earlier = records["seconds"]
        return records["epoch"]

    def keep(self, epoch: int, last: bool) -> None:
        """Keep the state after an epoch, if that is worth it.

        Args:
            epoch: How many are done.
            last: Whether these are all.
        """
        now = time.monotonic()
        if self.path is None or now - self.last < (AT_THE_END if last else EVERY):
            return
        tensors = self._changed() | {"random": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["random there"] = torch.cuda.get_rng_state(self.device)
        found = self.optimizer.state_dict()
        slots: dict[int, dict[str, Any]] = {}
        for number, slot in found["state"].items():
            for name, value in slot.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer {number} {name}"] = value
                else:
                    slots.setdefault(number, {})[name] = value
        records = {
            "epoch": epoch,
            "seconds": now - self.begin + self.earlier,
            "slots": slots,
            "groups": found["param_groups"],
            "rate": self.rate.state_dict(),
        }
        says = {"problem": self._problem(), "records": json.dumps(records)}
        sealed.write(self.path, tensors, says)
        self.last = time.monotonic()

    def _changed(self) -> dict[str, Tensor]:
        found = {f"parameter {k}": v for k, v in self.net.named_parameters()}
        found |= {f"buffer {k}": v for k, v in self.net.named_buffers()}
        return found | {f"also {k}": v for k, v in self.also.items()}

    # of the data only when there is something to compare it with
    def _problem(self) -> str:
        if not self._digest:
            self._digest = sealed.digest(*self.problem, self._start, sealed.code())
        return self._digest
