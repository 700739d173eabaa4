"""Where sweeps on the outputs are: what goes on, with the same bits, after a stop between two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Place:
    """How far a path of sweeps down to a budget has come.

    Args:
        budgets: Those that are still to come, one a sweep.
        tied: Weights that sweeps leave alone.
        at_once: Part of its weights that a row may lose in one sweep.
        sweeps: Sweeps that are done.
        refits: Of these, the refits at the end.
    """

    budgets: list[int]
    tied: int
    at_once: float = 0.5
    sweeps: int = 0
    refits: int = 0


@dataclass
class Kept:
    """Tensors, and numbers in the form of JSON.

    Args:
        tensors: By their names.
        records: Anything JSON knows.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str, parts: Sequence[Tensor]) -> None:
        """Add tensors of one dtype, in one piece.

        Args:
            name: Of all together.
            parts: The tensors; there may be none.
        """
        self.records[name] = [list(part.shape) for part in parts]
        if parts:
            self.tensors[name] = torch.cat([part.cpu().flatten() for part in parts])

    def get(self, name: str, like: Tensor) -> list[Tensor]:
        """Read what `put` has added.

        Args:
            name: Of all together.
            like: Says on which device.

        Returns:
            The tensors.
        """
        shapes: list[list[int]] = self.records[name]
        if not shapes:
            return []
        sizes = [torch.Size(shape).numel() for shape in shapes]
        pieces = self.tensors[name].to(like.device).split(sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def put_rows(self, name: str, rows: Mapping[int, Tensor]) -> None:
        """Add a tensor for some rows, in their order.

        Args:
            name: Of all together.
            rows: The tensors by the numbers of the rows.
        """
        self.records[f"{name} rows"] = list(rows)
        self.put(name, [*rows.values()])

    def get_rows(self, name: str, like: Tensor) -> dict[int, Tensor]:
        """Read what `put_rows` has added.

        Args:
            name: Of all together.
            like: Says on which device.

        Returns:
            The tensors by the numbers of the rows.
        """
        return dict(zip(self.records[f"{name} rows"], self.get(name, like), strict=True))
