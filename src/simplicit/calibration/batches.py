"""Runs calibration inputs through a network's state equations, batch by batch."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit._types import Inputs, Outputs, States
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError

Batch = Float[Tensor, "m *shape"]


def batches(
    inputs: Tensor | Iterable[Any], batch_size: int, input_shape: tuple[int, ...] | None = None
) -> "Batches":
    """Turn calibration inputs into a stream of checked batches.

    Args:
        inputs: One tensor (m, …), or an iterable of batches: tensors, or (input, label) pairs as a
            `DataLoader` gives, whose labels are ignored.
        batch_size: Samples in a batch cut from a tensor; an iterable's batches stay as they are.
        input_shape: Shape of one sample; that of the first batch by default.

    Returns:
        The stream. It can be passed over as often as `inputs` can.

    Raises:
        InputError: If batches have no size.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: accepted is a whole number, at least 1")
    if isinstance(inputs, Tensor):
        return Batches(inputs.split(batch_size), input_shape)
    return Batches(inputs, input_shape)


class Batches:
    """A stream of checked batches; made by `batches`.

    Args:
        source: An iterable of tensors or (input, label) pairs.
        input_shape: Shape of one sample; that of the first batch if None.
    """

    def __init__(self, source: Iterable[Any], input_shape: tuple[int, ...] | None = None) -> None:
        self._source = source
        self._input_shape = input_shape
        self._used_up = False

    @property
    def example(self) -> Batch:
        """The first batch; looking at it uses up nothing, even of a generator."""
        if isinstance(self._source, Iterator) and not self._used_up:
            head = list(islice(self._source, 1))
            self._source = chain(head, self._source)
            return next(self._checked(head))
        return next(iter(self))

    def __iter__(self) -> Iterator[Batch]:
        """Pass over the batches once.

        Returns:
            An iterator over tensors (m, *input_shape), none of them empty.

        Raises:
            InputError: If a generator is passed over again; while iterating, if a batch has NaN or
                Inf, another shape, or no floating-point numbers, or if there is no sample at all.
        """
        if self._used_up:
            raise InputError(
                "calibration inputs are a generator that is used up, and several passes over them "
                "are needed: accepted is a tensor, a list of batches or a DataLoader"
            )
        self._used_up = isinstance(self._source, Iterator)
        return self._checked(self._source)

    def _checked(self, source: Iterable[Any]) -> Iterator[Batch]:
        shape, empty = self._input_shape, True
        for index, item in enumerate(source):
            batch = _inputs_of(item, index)
            shape = shape or tuple(batch.shape[1:])
            if tuple(batch.shape[1:]) != shape:
                raise InputError(
                    f"calibration batch {index} has shape {tuple(batch.shape)}: accepted is "
                    f"(m, {', '.join(map(str, shape))})"
                )
            if len(batch) > 0:
                empty = False
                yield batch
        if empty:
            raise InputError("calibration inputs are empty: accepted is at least one sample")


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


def collect(
    equations: StateEquations, batch: Batch, dtype: torch.dtype = torch.float64
) -> tuple[Inputs, States, Outputs]:
    """Run one batch and keep what the row problems are made of.

    The network is run in its own dtype, as its owner runs it; the results are converted.

    Args:
        equations: The network.
        batch: Inputs (m, *input_shape).
        dtype: Of the results, which are on the network's device.

    Returns:
        Inputs U (m, p), pre-activations Z (m, n) with the last hidden layer first, as in the
        papers, and outputs Y (m, q). The states are `equations.activate(Z)`.
    """
    Z, Y = equations.replay(batch)
    U = batch.flatten(1).to(Y.device, dtype)
    return U, torch.cat(Z[::-1], dim=1).to(dtype), Y.to(dtype)
