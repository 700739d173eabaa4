"""The geometry of windows: which shifts a kernel reads, the zeros around, where results stand."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from simplicit.equations.layer_phi import MaxPool
from simplicit.equations.weighted_maps import Conv, ConvTranspose
from simplicit.runtime.layout import Layout, Slots, grid, runs
from simplicit.runtime.program import Part, Rows, Segments

Grid = tuple[int, ...]

Phase = tuple[np.ndarray, np.ndarray, int]
"""Shifts, the entries of the kernel they belong to, and how many results there are."""


def shifts(linear: Conv, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """List what the entries of a kernel read along one axis.

    Args:
        linear: The convolution.
        axis: The axis, from 0.

    Returns:
        Of each entry its shift and its phase: result o reads place stride · (o + shift) + phase.
    """
    entry = np.arange(linear.weight.shape[axis + 2]) * linear.dilation[axis]
    shift, phase = np.divmod(entry - linear.padding[axis][0], linear.stride[axis])
    return shift, phase


def phases(linear: ConvTranspose, axis: int) -> list[Phase]:
    """Sort the results of a transposed convolution along one axis by the entries they read.

    Args:
        linear: The transposed convolution.
        axis: The axis, from 0.

    Returns:
        Of results r, r + stride, …, for each r there is: result number t reads place t + shift.
    """
    stride, found = linear.stride[axis], []
    entry = np.arange(linear.weight.shape[axis + 2])
    for r in range(min(stride, linear.output_shape[axis + 1])):
        step = r + linear.padding[axis] - entry * linear.dilation[axis]
        used = step % stride == 0
        count = len(range(r, linear.output_shape[axis + 1], stride))
        found.append((step[used] // stride, entry[used], count))
    return found


def border(linear: Conv | ConvTranspose) -> list[tuple[int, int]]:
    """Say how many zeros a convolution reads around its input, where its stride is 1.

    Args:
        linear: The convolution.

    Returns:
        Before and after, by axis.
    """
    found = []
    for axis in range(len(linear.stride)):
        size, result = linear.input_shape[axis + 1], linear.output_shape[axis + 1]
        if isinstance(linear, Conv):
            reached = [(shifts(linear, axis)[0], result)]
        else:
            reached = [(shift, count) for shift, _, count in phases(linear, axis) if len(shift)]
        first = min((int(shift.min()) for shift, _ in reached), default=0)
        last = max((int(shift.max()) + count - 1 for shift, count in reached), default=0)
        found.append((max(0, -first), max(0, last - size + 1)))
    return found


def kernel_rows(
    linear: Conv | ConvTranspose, offsets: np.ndarray, channel: int, entries: Any = None
) -> Rows:
    """Write a kernel as sparse rows.

    Args:
        linear: The convolution.
        offsets: Slot that each entry of the kernel reads in the first channel.
        channel: Slots from one channel to the next.
        entries: Which entries of the kernel; all without.

    Returns:
        A row per channel of the result.
    """
    weight = linear.weight.detach().cpu().double().numpy()
    weight = weight.reshape(*weight.shape[:2], -1)
    if entries is not None:
        weight = weight[:, :, entries]
    K, reads, _ = weight.shape
    row, own, entry = np.nonzero(weight)
    first = row // (K // linear.groups) * reads
    places = (first + own) * channel + offsets.reshape(-1)[entry]
    return Rows.of(row, places, weight[row, own, entry], K)


def segments(sizes: Grid, strides: Sequence[int], out: Layout) -> Segments:
    """Say where a convolution is computed.

    Args:
        sizes: Of the grid of its results.
        strides: Slots from one place to the next of what is read.
        out: Layout of the results.

    Returns:
        A segment a row of the grid, or fewer where rows follow each other.
    """
    inside, there = grid(sizes, strides), grid(sizes, out.strides[1:])
    each = runs(inside, there)
    if len(each) == 1 or tuple(strides) != tuple(out.strides[1:]):
        return Segments(each)
    length = int(inside[-1]) + 1
    ends = each[:-1, 1] + each[:-1, 2]
    gaps = np.stack([np.full(len(ends), -1), ends, each[1:, 1] - ends], 1)
    gaps = gaps[gaps[:, 2] > 0]
    return Segments(each, np.array([[0, 0, length]], np.int64), gaps)


def pooled(phi: MaxPool, z: Slots, x: Slots) -> Part:
    """Write max-pooling as windows: places are rows, and channels the segments.

    Args:
        phi: The pooling.
        z: Slots of what it reads; channels are alike.
        x: Slots of its results.

    Returns:
        The windows.
    """
    spatial, channels = phi.shape[1:], phi.shape[0]
    slots = np.arange(prod(spatial)).reshape(spatial)
    windows = []
    for place in np.ndindex(*phi.output_shape[1:]):
        along = []
        for axis, o in enumerate(place):
            entry = np.arange(phi.kernel[axis]) * phi.dilation[axis]
            at = o * phi.stride[axis] - phi.padding[axis] + entry
            along.append(at[(at >= 0) & (at < spatial[axis])])
        windows.append(slots[np.ix_(*along)].reshape(-1))
    row = np.repeat(np.arange(len(windows)), [len(window) for window in windows])
    source, out = z.reshape(channels, -1), x.reshape(channels, -1)
    shift = np.stack([source[:, 0] - source[0, 0], out[:, 0] - out[0, 0], np.ones(channels)], 1)
    window = np.concatenate(windows)
    rows = Rows.of(row, source[0][window], np.zeros(len(window)), len(windows))
    return Part(rows, out[0], Segments(shift.astype(np.int64)))
