"""Calibration inputs, drawn once: checked batch by batch, kept in memory or on disk."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.spool import Spool, Spooled, read
from simplicit.errors import InputError

Batch = Float[Tensor, "m *shape"]

IN_MEMORY = 2**30
"""Bytes of drawn batches that stay in memory; further ones are kept in an unnamed file. A tensor,
or a list of tensors, is in memory already and is not copied."""


def batches(
    inputs: Tensor | Iterable[Any],
    batch_size: int,
    input_shape: tuple[int, ...] | None = None,
    in_memory: int = IN_MEMORY,
) -> "Batches":
    """Draw calibration inputs, once.

    All passes over the data see the same samples, so a loader that shuffles or augments gives one
    data set, and a generator will do.

    Args:
        inputs: One tensor or NumPy array (m, …), or an iterable of batches: such, or (input, label)
            pairs as a `DataLoader` gives, whose labels are ignored.
        batch_size: Samples in a batch cut from a tensor; an iterable's batches stay as they are.
        input_shape: Shape of one sample; that of the first batch by default.
        in_memory: Bytes of an iterable's batches that are kept in memory; the rest is on disk.

    Returns:
        The batches.

    Raises:
        InputError: If batches have no size, if one has NaN or Inf, another shape, or no
            floating-point numbers, or if there is no sample at all.
    """
    if isinstance(inputs, np.ndarray):
        inputs = torch.as_tensor(inputs)
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: accepted is a whole number, at least 1")
    source = inputs.split(batch_size) if isinstance(inputs, Tensor) else inputs
    there = isinstance(source, (list, tuple))
    kept, room, shape, spool = [], in_memory, input_shape, None
    for index, item in enumerate(source):
        batch = _inputs_of(item, index).detach()
        shape = shape or tuple(batch.shape[1:])
        if tuple(batch.shape[1:]) != shape:
            raise InputError(
                f"calibration batch {index} has shape {tuple(batch.shape)}: accepted is "
                f"(m, {', '.join(map(str, shape))})"
            )
        if len(batch) == 0:
            continue
        room -= 0 if there else batch.nbytes
        if room < 0:
            spool = spool or Spool()
            kept.append(spool.keep(batch))
        else:
            # a source may write its next batch into the same memory
            kept.append(batch if there else batch.clone())
    if not kept:
        raise InputError("calibration inputs are empty: accepted is at least one sample")
    return Batches(kept)


class Batches:
    """Checked batches of calibration inputs; made by `batches`.

    Args:
        kept: The batches, none of them empty.

    Attributes:
        example: The first batch.
    """

    def __init__(self, kept: list[Tensor | Spooled]) -> None:  # of unlike m
        self._kept = kept
        self.example: Batch = read(kept[0])

    @property
    def on_disk(self) -> bool:
        """Whether batches are on disk."""
        return any(isinstance(batch, Spooled) for batch in self._kept)

    @property
    def m(self) -> int:
        """Samples of all batches."""
        return sum(len(batch) for batch in self._kept)

    def __iter__(self) -> Iterator[Batch]:
        """Pass over the batches, as often as is wanted.

        Returns:
            An iterator over tensors (m, *input_shape).
        """
        return map(read, self._kept)

    def __len__(self) -> int:
        return len(self._kept)


def _inputs_of(item: Any, index: int) -> Tensor:
    batch = item[0] if isinstance(item, (tuple, list)) and item else item
    if isinstance(batch, np.ndarray):
        batch = torch.as_tensor(batch)
    if not isinstance(batch, Tensor):
        raise InputError(
            f"calibration batch {index} is a {type(batch).__name__}: accepted is a tensor or an "
            "(input, label) pair"
        )
    if not batch.is_floating_point():
        raise InputError(
            f"calibration batch {index} has dtype {batch.dtype}: accepted is floating point, "
            "scaled as for training, e.g. images.float() / 255"
        )
    if batch.ndim < 2:
        raise InputError(
            f"calibration batch {index} has shape {tuple(batch.shape)}: accepted is (m, …), "
            "samples first"
        )
    if not batch.isfinite().all():
        sample = int((~batch.isfinite()).flatten(1).any(1).nonzero()[0])
        raise InputError(
            f"calibration batch {index}, sample {sample}, has NaN or Inf entries: accepted are "
            "finite inputs"
        )
    return batch
