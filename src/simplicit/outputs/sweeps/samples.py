"""A model on its calibration samples, in parts that threads work on side by side."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.rows import Rows
from simplicit.equations.equation import Equation
from simplicit.outputs.distance import Distance
from simplicit.outputs.downstream import Downstream
from simplicit.outputs.expansion import Expansion
from simplicit.outputs.sweeps.kept import Kept

PARTS = 2
"""Parts of the samples; fixed, so that bits do not depend on how many threads there are."""

THREADED = 2**18
"""Numbers in the features of the longest rows from which on threads share the samples. Chosen: a
thread that takes up a piece costs as much as the piece where they are a tenth as many."""


def threaded(numbers: float) -> bool:
    """Say whether threads share the samples.

    Args:
        numbers: In the features of the longest rows.

    Returns:
        Whether they do.
    """
    return numbers >= THREADED


def summed(parts: Iterable[Tensor]) -> Tensor:
    """Add up what the parts of the samples have found, in their order.

    Args:
        parts: Tensors of one shape.

    Returns:
        Their sum.
    """
    return torch.stack(list(parts)).sum(0)


class Samples:
    """The samples, the model's states and outputs on them, and their distance from the teacher's.

    Args:
        every: The model's equations in forward order, the outputs last; changed in place.
        u: Calibration inputs, flattened (m, p).
        T: The teacher's outputs, (m, q).
        distance: Distance to them.
        inactive: Weight of a sample where φ is flat, as a part of what it had if φ were not.
        workers: Threads that share the samples, where these are many.
        longest: Numbers in the features of the longest rows of one sample.

    Attributes:
        m: Samples that are looked at.
        each_of: Every how manyth of all samples these are.
        parts: The parts of them.
        map: Does something for one part after the other, or side by side.
    """

    def __init__(
        self,
        every: list[Equation],
        u: Float[Tensor, "m p"],
        T: Float[Tensor, "m q"],
        distance: Distance,
        inactive: float,
        workers: int,
        longest: int,
    ) -> None:
        self.every, self._all = every, (u, T)
        self._distance, self._inactive = distance, inactive
        many = workers if threaded(len(u) * longest) else 1
        self.map = map if many <= 1 else ThreadPoolExecutor(min(many, PARTS)).map
        self.look_at(1)

    def look_at(self, each_of: int) -> None:
        """Look at some of the samples from now on; states and outputs are computed anew.

        Args:
            each_of: Every how manyth.
        """
        self.each_of, (u, T) = each_of, (samples[::each_of] for samples in self._all)
        self.m = len(u)
        self.parts = [
            Downstream(self.every, part, t, self._distance, self._inactive)
            for part, t in zip(u.tensor_split(PARTS), T.tensor_split(PARTS), strict=True)
            if len(part)
        ]

    @property
    def distance(self) -> float:
        """How far the outputs are from the teacher's, a mean over the samples."""
        return sum(part.distance for part in self.parts) / self.m

    @property
    def outputs(self) -> Float[Tensor, "m q"]:
        """The model's outputs on the samples."""
        return torch.cat([part.Y for part in self.parts])

    def features(self, rows: Rows, bias: bool) -> list[list[Tensor]]:
        """Compute what a layer's rows read.

        Args:
            rows: The rows.
            bias: Whether a one is the last feature.

        Returns:
            For each part of the samples, those of each group, see `Downstream.features`.
        """
        return list(self.map(lambda part: part.features(rows, bias), self.parts))

    def expand(
        self,
        rows: Rows,
        group: int,
        channels: slice,
        V: list[Tensor],
        random: torch.Generator,
    ) -> list[Expansion]:
        """Expand the distance to second order in the pre-activations of some channels.

        Args:
            rows: Rows of the layer.
            group: The channels' group.
            channels: Which channels of it.
            V: Their features, for each part of the samples.
            random: Of combinations of the outputs, where there are many.

        Returns:
            The expansion on each part of the samples.
        """
        seeds = torch.randint(2**31, (PARTS,), generator=random).tolist()

        def expand(part: Downstream, own: Tensor, seed: int) -> Expansion:
            generator = torch.Generator().manual_seed(seed)
            return part.expand(rows, group, channels, own, generator)

        return list(self.map(expand, self.parts, V, seeds))

    def write(self, kept: Kept) -> None:
        """Write states and outputs down: summed up anew they would have other bits.

        Args:
            kept: Where to.
        """
        for k, part in enumerate(self.parts):
            for j, (z, x) in enumerate(zip(part.Z, part.X, strict=True)):
                kept.tensors |= {f"Z {k} {j}": z, f"X {k} {j}": x}
            kept.tensors[f"Y {k}"] = part.Y
        distances = [part.distance for part in self.parts]
        kept.records |= {"distances": distances, "each of": self.each_of}

    def read(self, kept: Kept) -> None:
        """Take over what `write` has written.

        Args:
            kept: Where from.
        """
        self.look_at(kept.records["each of"])
        tensors, distances = kept.tensors, kept.records["distances"]
        for k, (part, distance) in enumerate(zip(self.parts, distances, strict=True)):
            for j, (z, x) in enumerate(zip(part.Z, part.X, strict=True)):
                # not into them: where φ does nothing, both are one
                part.Z[j] = torch.empty_like(z).copy_(tensors[f"Z {k} {j}"])
                part.X[j] = torch.empty_like(x).copy_(tensors[f"X {k} {j}"])
            part.Y = torch.empty_like(part.Y).copy_(tensors[f"Y {k}"])
            part.distance = distance
