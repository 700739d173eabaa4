"""Calibration inputs, drawn once: checked batch by batch, kept in memory or on disk."""

import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

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
        inputs: One tensor (m, …), or an iterable of batches: tensors, or (input, label) pairs as a
            `DataLoader` gives, whose labels are ignored.
        batch_size: Samples in a batch cut from a tensor; an iterable's batches stay as they are.
        input_shape: Shape of one sample; that of the first batch by default.
        in_memory: Bytes of an iterable's batches that are kept in memory; the rest is on disk.

    Returns:
        The batches.

    Raises:
        InputError: If batches have no size, if one has NaN or Inf, another shape, or no
            floating-point numbers, or if there is no sample at all.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: accepted is a whole number, at least 1")
    source = inputs.split(batch_size) if isinstance(inputs, Tensor) else inputs
    there = isinstance(source, (list, tuple))
    kept, room, shape = [], in_memory, input_shape
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
        room -= 0 if there else batch.numel() * batch.element_size()
        kept.append(batch if room >= 0 else _on_disk(batch))
    if not kept:
        raise InputError("calibration inputs are empty: accepted is at least one sample")
    return Batches(kept)


class Batches:
    """Checked batches of calibration inputs; made by `batches`.

    Args:
        kept: The batches, none of them empty.
    """

    def __init__(self, kept: list[Float[Tensor, "_ *shape"]]) -> None:
        self._kept = kept

    @property
    def example(self) -> Batch:
        """The first batch."""
        return self._kept[0]

    @property
    def m(self) -> int:
        """Samples of all batches."""
        return sum(len(batch) for batch in self._kept)

    def __iter__(self) -> Iterator[Batch]:
        """Pass over the batches, as often as is wanted.

        Returns:
            An iterator over tensors (m, *input_shape).
        """
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


# The file is written, not mapped, first: a full disk is then an error and not a signal.
def _on_disk(batch: Tensor) -> Tensor:
    batch = batch.cpu().contiguous()
    file = tempfile.TemporaryFile()
    file.write(batch.view(-1).view(torch.uint8).numpy().data)
    file.flush()
    mapped = np.memmap(file, np.uint8, "r+")
    return torch.from_numpy(mapped).view(batch.dtype).view(batch.shape)


def _inputs_of(item: Any, index: int) -> Tensor:
    batch = item[0] if isinstance(item, (tuple, list)) and item else item
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
