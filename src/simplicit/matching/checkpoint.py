"""Finished parts of a matching on disk: one that is stopped loses at most the block it was in."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from simplicit.errors import InputError
from simplicit.model.archive import sealed
from simplicit.system import files
from simplicit.system.deadline import Deadline
from simplicit.workers.journal import Journal
from simplicit.workers.workers import Workers

ENDING = ".safetensors"

PHASES = ("level", "solve", "sweeps")
"""Phases whose time is known beyond a stop: the plan, the layers, the sweeps on the outputs."""


class Checkpoint:
    """A folder of finished parts of one problem.

    Args:
        folder: Where they are kept; None keeps nothing.
        problem: What tells this problem from others, each by its name; the code is told, too.
    """

    def __init__(self, folder: Path | None, problem: Mapping[str, Any]) -> None:
        self.folder = folder
        every = {**problem, "version of simplicit": sealed.code()}
        self.problem = {name: sealed.digest(value) for name, value in every.items()}
        if folder is not None and folder.is_dir():
            files.clear(folder, everywhere=False)

    def keep(
        self,
        name: str,
        W: Float[Tensor, "..."],
        records: Mapping[str, Any],
        **others: Tensor,
    ) -> None:
        """Write a part.

        Args:
            name: Of the part.
            W: Its weights.
            records: Anything JSON knows.
            **others: Further tensors.
        """
        if self.folder is not None:
            says = {"problem": json.dumps(self.problem), "records": json.dumps(records)}
            sealed.write(self.folder / f"{name}{ENDING}", {"W": W, **others}, says)

    def journal(self, name: str) -> Journal | None:
        """Open the journal of a part that is under way.

        Args:
            name: Of the part.

        Returns:
            The finished pieces of it; None where nothing is kept.
        """
        if self.folder is None:
            return None
        return Journal(self._journal(name), json.dumps(self.problem))

    def _journal(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.journal"

    def restore(self, name: str) -> tuple[Float[Tensor, "r c"], dict[str, Any]] | None:
        """Read a part.

        Args:
            name: Of the part.

        Returns:
            Weights and records, or None if the part was not finished, or is damaged.
        """
        found = self.restore_all(name)
        return found and (found[0]["W"], found[1])

    def restore_all(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read a part with several tensors.

        Args:
            name: Of the part.

        Returns:
            The tensors, the weights as `W`, and the records; None as in `restore`.

        Raises:
            InputError: If the folder holds parts of another problem.
        """
        path = self.folder and self.folder / f"{name}{ENDING}"
        if path is None or not path.exists():
            return None
        try:
            tensors, says = sealed.read(path)
            told, records = json.loads(says["problem"]), json.loads(says["records"])
        except (sealed.Damaged, KeyError, ValueError) as error:
            files.set_aside(path, str(error), "computed again")
            return None
        if other := [part for part, own in self.problem.items() if told.get(part) != own]:
            raise InputError(
                f"{path} belongs to another {' and another '.join(other)}: give another folder "
                "as checkpoint, or empty this one"
            )
        # of a process that was killed between the two
        self._journal(name).unlink(missing_ok=True)
        return tensors, records

    def drop(self, *names: str) -> None:
        """Remove parts that nothing needs any more.

        Args:
            *names: Of the parts, or patterns of them such as `layer-*`.
        """
        for name in names if self.folder is not None else ():
            assert self.folder is not None
            for path in self.folder.glob(f"{name}{ENDING}"):
                path.unlink(missing_ok=True)


class Stages:
    """The stages of a matching, and the seconds that each phase has taken, those before a stop too.

    Args:
        checkpoint: Where finished ones are kept.
        executor: Takes their pieces.
        deadline: How long all may take.

    Attributes:
        start: When the matching would have begun had it not been stopped, by `time.monotonic`.
        earlier: Seconds of each phase before a stop.
    """

    def __init__(self, checkpoint: Checkpoint, executor: Workers, deadline: Deadline) -> None:
        self.checkpoint, self.executor, self.deadline = checkpoint, executor, deadline
        self.start = time.monotonic()
        self.earlier: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def under_way(self, name: str, phase: str) -> Iterator[float]:
        """Keep the finished pieces of a stage until the stage is.

        Args:
            name: Of the stage.
            phase: One of `PHASES`.

        Yields:
            When it began, attempts before a stop included.
        """
        journal = self.checkpoint.journal(name)
        spent = 0.0 if journal is None else journal.spent
        self.spent(phase, spent)
        with self.executor.keeping(journal):
            yield time.monotonic() - spent
        if journal is not None:
            journal.remove()

    def restore(self, name: str, phase: str) -> tuple[Tensor, dict[str, Any]] | None:
        """Read a finished stage, and count the time it took.

        Args:
            name: Of the stage.
            phase: One of `PHASES`.

        Returns:
            As `Checkpoint.restore`.
        """
        saved = self.checkpoint.restore(name)
        if saved:
            self.spent(phase, saved[1]["seconds"])
        return saved

    def spent(self, phase: str, seconds: float) -> None:
        """Count time that was spent before a stop.

        Args:
            phase: One of `PHASES`.
            seconds: The time.
        """
        self.earlier[phase] += seconds
        self.start -= seconds
        self.deadline.earlier += seconds
