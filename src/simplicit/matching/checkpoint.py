"""Finished parts of a matching on disk: one that is stopped loses at most the block it was in."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from simplicit.errors import InputError
from simplicit.system.files import write_bytes
from simplicit.workers.journal import Journal


class Checkpoint:
    """A folder of finished parts of one problem.

    Args:
        folder: Where they are kept; None keeps nothing.
        problem: What tells this problem from others.
    """

    def __init__(self, folder: Path | None, *problem: Any) -> None:
        self.folder = folder
        self.problem = hashlib.sha256(repr(problem).encode()).hexdigest()

    def keep(self, name: str, W: Float[Tensor, "r c"], records: Mapping[str, Any]) -> None:
        """Write a part.

        Args:
            name: Of the part.
            W: Its weights.
            records: Anything JSON knows.
        """
        if self.folder is not None:
            metadata = {"problem": self.problem, "records": json.dumps(records)}
            content = safetensors.torch.save({"W": W.cpu().contiguous()}, metadata)
            write_bytes(self.folder / f"{name}.safetensors", content)

    def journal(self, name: str) -> Journal | None:
        """Open the journal of a part that is under way.

        Args:
            name: Of the part.

        Returns:
            The finished pieces of it; None where nothing is kept.
        """
        if self.folder is None:
            return None
        return Journal(self.folder / f"{name}.journal", self.problem)

    def restore(self, name: str) -> tuple[Float[Tensor, "r c"], dict[str, Any]] | None:
        """Read a part.

        Args:
            name: Of the part.

        Returns:
            Weights and records, or None if the part was not finished.

        Raises:
            InputError: If the folder holds parts of another problem.
        """
        path = self.folder and self.folder / f"{name}.safetensors"
        if path is None or not path.exists():
            return None
        with safe_open(path, "pt") as saved:
            metadata = saved.metadata()
            if metadata["problem"] != self.problem:
                raise InputError(
                    f"{path} belongs to another network, recipe or calibration set: give another "
                    "folder as checkpoint, or empty this one"
                )
            return saved.get_tensor("W"), json.loads(metadata["records"])
