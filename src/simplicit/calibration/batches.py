"""Calibration inputs, drawn once: checked batch by batch, kept in memory or on disk."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from simplicit.calibration.spool import Spool, Spooled, read
from simplicit.capture.inputs import inputs_of, taken
from simplicit.equations.interface import Input, packed, plain, require_alike, tensor_of
from simplicit.errors import InputError

Batch = Float[Tensor, "m *shape"]

IN_MEMORY = 2**30
"""Bytes of drawn batches that stay in memory; further ones are kept in an unnamed file. A tensor,
or a list of tensors, is in memory already and is not copied."""


def batches(
    inputs: Tensor | Iterable[Any],
    batch_size: int,
    net: nn.Module | None = None,
    in_memory: int = IN_MEMORY,
) -> "Batches":
    """Draw calibration inputs, once.

    All passes over the data see the same samples, so a loader that shuffles or augments gives one
    data set, and a generator will do.

    Args:
        inputs: All samples in one tensor or NumPy array (m, …), in a tuple of them if the network
            takes several, or in a table of them by name; or an iterable of such batches, in which
            labels may follow the inputs, as a `DataLoader` gives them. Labels are ignored.
        batch_size: Samples in a batch cut from tensors; an iterable's batches stay as they are.
        net: The network, which says how many tensors it takes; one if omitted.
        in_memory: Bytes of an iterable's batches that are kept in memory; the rest is on disk.

    Returns:
        The batches. Of a network that takes one tensor of floating-point numbers they are these
        tensors, otherwise its inputs one after another, see `interface.packed`.

    Raises:
        InputError: If batches have no size, if one has NaN or Inf, another shape, or is not what
            the network takes, or if there is no sample at all.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: accepted is a whole number, at least 1")
    source = _cut(inputs, batch_size, net)
    there = isinstance(source, (list, tuple))
    kept, room, spool = [], in_memory, None
    wanted: tuple[Input, ...] = ()
    for index, item in enumerate(source):
        try:
            wanted = wanted or inputs_of(net, item)
            batch = _batch_of(item, wanted)
        except InputError as error:
            raise InputError(f"calibration batch {index}: {error}") from None
        if len(batch) == 0:
            continue
        there = there and plain(wanted)
        room -= 0 if there else batch.nbytes
        if room < 0:
            spool = spool or Spool()
            kept.append(spool.keep(batch))
        else:
            # a source may write its next batch into the same memory
            kept.append(batch if there or not plain(wanted) else batch.clone())
    if not kept:
        raise InputError("calibration inputs are empty: accepted is at least one sample")
    return Batches(kept, wanted)


def _cut(inputs: Any, batch_size: int, net: nn.Module | None) -> Iterable[Any]:
    if isinstance(inputs, (Tensor, np.ndarray)):
        return tensor_of(inputs).split(batch_size)
    if not isinstance(inputs, Iterable):
        raise InputError(
            f"calibration inputs are a {type(inputs).__name__}: accepted are tensors, tables of "
            "them, and iterables of batches"
        )
    several = isinstance(inputs, tuple) and all(isinstance(x, (Tensor, np.ndarray)) for x in inputs)
    if not isinstance(inputs, Mapping) and not (several and net is not None):
        return inputs
    wanted = inputs_of(net, inputs)
    if several and len(wanted) == 1:
        return inputs  # a tuple of batches
    given, named = taken(inputs, wanted)
    values = (*given, *named.values())
    every = [tensor_of(x, i.name) for x, i in zip(values, wanted, strict=True)]
    require_alike(every)
    cut = zip(*(value.split(batch_size) for value in every), strict=True)
    return [dict(zip(named, parts, strict=True)) if named else parts for parts in cut]


class Batches:
    """Checked batches of calibration inputs; made by `batches`.

    Args:
        kept: The batches, none of them empty.
        inputs: What stands in them.

    Attributes:
        example: The first batch.
        inputs: What stands in the batches.
    """

    def __init__(self, kept: list[Tensor | Spooled], inputs: tuple[Input, ...]) -> None:
        self._kept, self.inputs = kept, inputs
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


def _batch_of(item: Any, wanted: tuple[Input, ...]) -> Tensor:
    given, named = taken(item, wanted)
    every = (*given, *named.values())
    values = [tensor_of(x, i.name).detach() for x, i in zip(every, wanted, strict=False)]
    for value, name in zip(values, [i.name for i in wanted], strict=False):
        of = f" of {name}" if name else ""
        if value.ndim < 2 and plain(wanted):
            raise InputError(f"shape {tuple(value.shape)}: accepted is (m, …), samples first")
        if not value.isfinite().all():
            sample = int((~value.isfinite()).flatten(1).any(1).nonzero()[0])
            raise InputError(
                f"sample {sample}{of} has NaN or Inf entries: accepted are finite inputs"
            )
    doubles = any(value.dtype == torch.float64 for value in values)
    like = torch.empty(0, dtype=torch.float64 if doubles else torch.float32)
    if not plain(wanted):
        return packed(wanted, given, named, like).detach()
    (batch,) = values
    if not batch.is_floating_point() or tuple(batch.shape[1:]) != wanted[0].shape:
        packed(wanted, given, named, like)  # says what is wrong with it
    return batch
