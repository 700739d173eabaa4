"""State equations as steps on slots: A, B, C, D, b and d as lists of sparse rows.

A dense layer is rows over single slots. A convolution is rows over segments: with weight (c, k) of
a kernel, the row reads channel c shifted by k, at every place at once. Where its stride is not 1,
or what it reads stands elsewhere, its input is copied first, phase by phase, so that every shift is
one number again.
"""

from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simplicit.equations.compose import identity
from simplicit.equations.equation import Equation, Summand, Term
from simplicit.equations.layer_phi import Kept, MaxPool
from simplicit.equations.network import StateEquations
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Conv, ConvTranspose, Dense, Gather, Sparse
from simplicit.runtime import windows
from simplicit.runtime.kernel import PHI
from simplicit.runtime.layout import Layout, Place, Slots, grid, runs, steps, summed
from simplicit.runtime.program import Call, Maxima, Moves, Part, Program, Rows, Segments, Step, Sums

DENSE = 0.25
"""Share of weights left from which torch's dense layer is tried too."""

Grid = tuple[int, ...]


def lowered(equations: StateEquations) -> Program:
    """Compile equations without feedback.

    Args:
        equations: The network; weights are copied.

    Returns:
        The program.
    """
    return _Lowering(equations).program()


# Whether a convolution could read a state where it stands
def _direct(term: Term) -> bool:
    same = term.fixed is None or (isinstance(term.fixed, Gather) and term.fixed.is_identity)
    if _written(term) or not same:
        return False
    if isinstance(term.map, Conv):
        return all(stride == 1 for stride in term.map.stride)
    return isinstance(term.map, ConvTranspose)


class _Lowering:
    def __init__(self, equations: StateEquations) -> None:
        self.equations = equations
        self.like = equations.like.detach().cpu()
        self.steps: list[Step] = []
        self.size = 0
        self.free: dict[Layout, list[int]] = {}
        self.temporary: list[Place] = []  # given back behind the equation
        self.constant_slots: list[Slots] = []
        self.constant_values: list[np.ndarray] = []
        self.layouts = self._layouts()
        self.places: dict[int, Place] = {}
        self.last = {
            source: index
            for index, equation in enumerate(equations.layers)
            for source in equation.sources
        }

    def program(self) -> Program:
        given = self.places[-1] = self._place(self.layouts[-1])
        for index, equation in enumerate(self.equations.layers):
            self.places[index] = self._equation(index, equation)
            for place in self.temporary:
                self._give_back(place)
            self.temporary = []
            for source, end in self.last.items():
                if end == index and source >= 0:
                    self._give_back(self.places[source])
        result = self.places[len(self.equations.hidden)]
        # all of them, also those that no weight reads: a sample that is not finite is seen there
        inputs = runs(np.arange(self.equations.p), given.slots)
        outputs = runs(np.arange(self.equations.q), result.slots)
        none = np.zeros(0, np.int64)
        constants = (
            np.concatenate([none, *self.constant_slots]),
            np.concatenate([np.zeros(0), *self.constant_values]),
        )
        p, q = self.equations.p, self.equations.q
        return Program(tuple(self.steps), self.size, constants, inputs, outputs, p, q)

    # --- where states stand

    # a state is an image if a convolution reads it as one
    def _layouts(self) -> dict[int, Layout]:
        every = self.equations.layers
        shapes: dict[int, Grid] = {-1: (self.equations.p,)}
        if len(self.equations.inputs) == 1 and len(self.equations.input_shape) > 1:
            shapes[-1] = self.equations.input_shape
        for index, equation in enumerate(every):
            shapes[index] = self._shape(equation)
        borders: dict[Grid, list[tuple[int, int]]] = {}
        for equation in every:
            for term in equation.terms:
                if isinstance(term.map, Conv | ConvTranspose) and _direct(term):
                    shapes[term.source] = term.map.input_shape
                    grid, new = term.map.input_shape[1:], windows.border(term.map)
                    old = borders.get(grid, [(0, 0)] * len(grid))
                    borders[grid] = [
                        (max(a, c), max(b, d)) for (a, b), (c, d) in zip(old, new, strict=True)
                    ]
        found = {}
        for index, shape in shapes.items():
            around = borders.get(shape[1:], [(0, 0)] * (len(shape) - 1))
            found[index] = Layout(shape, tuple(a for a, _ in around), tuple(b for _, b in around))
        return found

    def _shape(self, equation: Equation) -> Grid:
        if isinstance(equation.phi, MaxPool):
            return equation.phi.output_shape
        if isinstance(equation.phi, Kept):
            return (equation.states,)
        first = equation.terms[0].map if equation.terms else None
        if isinstance(first, Conv | ConvTranspose):
            return first.output_shape
        return (equation.states,)

    def _place(self, layout: Layout, *, alone: bool = False) -> Place:
        waiting = self.free.get(layout)
        if waiting and not alone:
            return Place(layout, waiting.pop())
        place = Place(layout, self.size)
        self.size += layout.size
        return place

    # another of the same layout may stand there: its border is zero already
    def _give_back(self, place: Place) -> None:
        self.free.setdefault(place.layout, []).append(place.start)

    def _constant(self, slots: Slots, values: Tensor) -> None:
        self.constant_slots.append(slots)
        self.constant_values.append(values.detach().cpu().double().numpy())

    # --- one equation

    def _equation(self, index: int, e: Equation) -> Place:
        layout, phi = self.layouts[index], e.phi
        first = e.terms[0].map if e.terms else None
        natural = first.output_shape if isinstance(first, Conv | ConvTranspose) else (e.size,)
        fused = isinstance(phi, Phi) and phi.name in PHI
        fits = layout.shape == natural or not any(_at_places(term) for term in e.terms)
        state = self._place(layout)
        if isinstance(phi, MaxPool) and (slots := self._moved(e, phi)) is not None:
            self.steps.append(Maxima(windows.pooled(phi, slots, state.slots)))
            return state
        z = state
        if not (isinstance(phi, Phi) and fits):
            z = self._place(Layout(natural, *_none(natural)))
            self.temporary.append(z)
        self._sums(e, z, phi if isinstance(phi, Phi) and fused else Phi("identity"))
        if not fused:
            self._phi(e, z, state)
        elif z is not state:
            self.steps.append(Moves(runs(z.slots, state.slots)))
        return state

    # slots of z where it is a state as it stands, in another order maybe
    def _moved(self, e: Equation, phi: MaxPool) -> Slots | None:
        if e.terms or len(e.fixed) != 1 or e.bias is not None:
            return None
        (summand,) = e.fixed
        if not isinstance(summand.map, Gather) or bool((summand.map.index < 0).any()):
            return None
        slots = self.places[summand.source].slots[summand.map.index.cpu().numpy()]
        apart = slots.reshape(phi.shape[0], -1)
        return slots if (apart - apart[:, :1] == apart[0] - apart[0, 0]).all() else None

    def _phi(self, e: Equation, z: Place, state: Place) -> None:
        phi = e.phi.changed(lambda t: t.detach().clone()) if isinstance(e.phi, Kept) else e.phi
        if isinstance(phi, MaxPool):
            self.steps.append(Maxima(windows.pooled(phi, z.slots, state.slots)))
            return

        def apply(arena: Tensor, n: int) -> None:
            before, after = z.view(arena, n), state.view(arena, n)
            if isinstance(phi, Phi) and before.shape == after.shape:
                after.copy_(phi(before))
            else:
                x = phi(before.reshape(-1, n).T.contiguous())
                after.copy_(x.T.reshape(after.shape))

        self.steps.append(Call(f"{e.name}: {phi.name}", apply))

    # z of an equation: parts that read and write at the same places are one list of rows
    def _sums(self, e: Equation, z: Place, phi: Phi) -> None:
        bias = torch.zeros(e.size, dtype=torch.float64)
        if e.full_bias is not None:
            bias += e.full_bias.detach().cpu().double()
        parts: list[Part] = []
        for term in e.terms:
            if term.offset is not None and not _written(term):
                bias += term.map(term.offset[None]).detach().cpu().double()[0]
            parts += self._term(term, z)
        parts += [self._summand(summand, z) for summand in e.fixed]
        joined: list[Part] = []
        for part in parts:
            same = (k for k, other in enumerate(joined) if part.same(other))
            k = next(same, None)
            if k is None:
                joined.append(part)
            else:
                joined[k] = replace(part, rows=joined[k].rows.joined(part.rows))
        code, slope = PHI.index(phi.name), phi.slope
        by_slot = np.zeros(self.size)
        by_slot[z.slots] = bias.numpy()
        apart = sum(part.places for part in joined) == e.size  # of one place each
        biases = [part.bias(by_slot) for part in joined]
        whole = len(joined) == 1 or apart or joined[0].places == e.size
        if not whole or any(own is None for own in biases[: len(joined) if apart else 1]):
            # a number of its own for every entry, and what there is is added to it
            constant = self._place(Layout((e.size,)), alone=True)
            self._constant(constant.slots, bias)
            self.steps.append(Moves(runs(constant.slots, z.slots)))
            biases, apart = [None] * len(joined), False
        elif not apart:
            biases[1:] = [None] * (len(joined) - 1)
        last = len(joined) - 1
        for k, (part, own) in enumerate(zip(joined, biases, strict=True)):
            ends = apart or (k == last and part.places == e.size)
            number = code if ends else 0
            step = Sums(e.name, part, own, number, slope)
            if len(joined) == 1 and len(e.terms) == 1 and not e.fixed and own is not None:
                step = replace(step, dense=self._dense(e.terms[0], z, own, phi))
            self.steps.append(step)
        if code and not (apart or joined[last].places == e.size):
            none = np.zeros(0, np.int64)
            nothing = Rows.of(none, none, np.zeros(0), e.size)
            self.steps.append(Sums(e.name, Part(nothing, z.slots), None, code, slope))

    def _term(self, term: Term, z: Place) -> list[Part]:
        linear = term.map
        shape = (linear.rows,) if isinstance(linear, Dense) else linear.output_shape
        if _at_places(term) and z.layout.shape != shape:  # beside a term of another kind
            apart = self._place(Layout(shape, *_none(shape)))
            self.temporary.append(apart)
            for part in self._term(term, apart):
                self.steps.append(Sums("apart", part, np.zeros(len(part.outs))))
            own = np.arange(linear.rows)
            return [Part(Rows.of(own, apart.slots, np.ones(linear.rows), linear.rows), z.slots)]
        if isinstance(linear, Dense):
            return [self._matrix(term, linear, z)]
        if isinstance(linear, ConvTranspose):
            return self._transposed(term, linear, z)
        assert isinstance(linear, Conv)
        return [self._convolution(term, linear, z)]

    # slots of what a term reads, entry by entry; −1 for zero
    def _read(self, term: Term) -> Slots:
        if _written(term):
            place = self._place(Layout((term.map.columns,)))
            self.temporary.append(place)
            self._entries(term, place.slots)
            return place.slots
        slots = self.places[term.source].slots
        if not isinstance(term.fixed, Gather):
            return slots
        index = term.fixed.index.cpu().numpy()
        return np.where(index < 0, -1, slots[index])

    # what a term reads, computed into slots: F s + c where convolutions read it, F s elsewhere
    def _entries(self, term: Term, outs: Slots) -> None:
        columns = term.map.columns
        fixed = identity(columns) if term.fixed is None else term.fixed
        bias = np.zeros(columns)
        if term.offset is not None:
            bias = term.offset.detach().cpu().double().numpy()
        rows = _fixed_rows(fixed, self.places[term.source].slots)
        self.steps.append(Sums("read", Part(rows, outs), bias))

    # that, as an image with the border that a convolution needs
    def _image(self, term: Term, linear: Conv | ConvTranspose) -> Place:
        around = windows.border(linear)
        before, after = (tuple(side) for side in zip(*around, strict=True))
        layout = Layout(linear.input_shape, before, after)
        if _written(term):
            place = self._place(layout)
            self.temporary.append(place)
            self._entries(term, place.slots)
            return place
        place, read = self._place(layout, alone=True), self._read(term)
        self.steps.append(Moves(runs(read[read >= 0], place.slots[read >= 0])))
        return place

    def _matrix(self, term: Term, linear: Dense, z: Place) -> Part:
        weight, read = linear.weight.detach().cpu().double().numpy(), self._read(term)
        K, F = weight.shape
        if linear.positions > 1 and not np.array_equal(read, read[0] + np.arange(len(read))):
            read = self._copied(read)
        own = read[:F]
        row, column = np.nonzero(weight * (own >= 0))
        rows = Rows.of(row, own[column], weight[row, column], K)
        if linear.positions == 1:
            return Part(rows, z.slots)
        place = np.arange(linear.positions)
        each = np.stack([place * F, place * K, np.ones_like(place)], 1)
        return Part(rows, z.slots[:K], Segments(each))

    def _copied(self, read: Slots) -> Slots:
        place = self._place(Layout((len(read),)), alone=True)
        self.steps.append(Moves(runs(read[read >= 0], place.slots[read >= 0])))
        return place.slots

    def _summand(self, summand: Summand, z: Place) -> Part:
        fixed, source = summand.map, self.places[summand.source]
        if isinstance(fixed, Gather):
            here, there = source.layout, z.layout
            if fixed.is_identity and here.shape == there.shape and here.strides == there.strides:
                segments = windows.segments(there.grid, there.strides[1:], there)
                channels = np.arange(there.shape[0])
                offsets = source.start + here.corner + channels * here.strides[0]
                outs = z.start + there.corner + channels * there.strides[0]
                rows = Rows.of(channels, offsets, np.ones(len(channels)), len(channels))
                return Part(rows, outs, segments)
        return Part(_fixed_rows(fixed, source.slots), z.slots)

    # --- convolutions

    def _convolution(self, term: Term, linear: Conv, z: Place) -> Part:
        axes = range(len(linear.stride))
        place, direct = self.places[term.source], _direct(term)
        if _written(term) and all(stride == 1 for stride in linear.stride):
            place, direct = self._image(term, linear), True
        shifts, phases = zip(*(windows.shifts(linear, axis) for axis in axes), strict=True)
        if direct and place.layout.shape == linear.input_shape:
            layout = place.layout
            apart = zip(shifts, layout.strides[1:], strict=True)
            along = [shift * stride for shift, stride in apart]
            offsets = summed(along, place.start + layout.corner)
            channel, strides = layout.strides[0], layout.strides[1:]
        else:
            offsets, channel, strides = self._framed(term, linear, shifts, phases)
        return Part(
            windows.kernel_rows(linear, offsets, channel),
            z.start + z.layout.corner + np.arange(z.layout.shape[0]) * z.layout.strides[0],
            windows.segments(linear.output_shape[1:], strides, z.layout),
        )

    # A copy of what a convolution reads, phase by phase.
    def _framed(self, term: Term, linear: Conv, shifts: Any, phases: Any) -> Any:
        axes = range(len(linear.stride))
        read = self._read(term).reshape(linear.input_shape)
        lowest = [int(shift.min()) for shift in shifts]
        extents = tuple(
            linear.output_shape[axis + 1] + int(shifts[axis].max()) - lowest[axis] for axis in axes
        )
        strides, plane = steps(extents), prod(extents) | 1
        used = sorted(set(product(*(np.unique(phase).tolist() for phase in phases))))
        channels = linear.input_shape[0]
        layout = Layout((len(used) * channels * plane,))
        place = self._place(layout, alone=True)
        sources, outs = [], []
        for k, phase in enumerate(used):
            # place i of the copy is entry stride · (i + lowest) + phase of the input
            along = [
                linear.stride[axis] * (np.arange(extents[axis]) + lowest[axis]) + phase[axis]
                for axis in axes
            ]
            inside = [(0 <= a) & (a < size) for a, size in zip(along, read.shape[1:], strict=True)]
            kept = [np.flatnonzero(some) for some in inside]
            ranges = [a[some] for a, some in zip(along, kept, strict=True)]
            sources.append(read[np.ix_(np.arange(channels), *ranges)].reshape(-1))
            apart = [some * stride for some, stride in zip(kept, strides, strict=True)]
            first = place.start + k * channels * plane
            outs.append(summed([np.arange(channels) * plane, *apart], first))
        source, out = np.concatenate(sources), np.concatenate(outs)
        self.steps.append(Moves(runs(source[source >= 0], out[source >= 0])))
        number = {phase: k for k, phase in enumerate(used)}
        offsets = np.zeros(linear.weight.shape[2:], np.int64)
        for entry in np.ndindex(*offsets.shape):
            phase = tuple(int(phases[axis][entry[axis]]) for axis in axes)
            shift = sum(
                (int(shifts[axis][entry[axis]]) - lowest[axis]) * strides[axis] for axis in axes
            )
            offsets[entry] = place.start + number[phase] * channels * plane + shift
        return offsets, plane, strides

    def _transposed(self, term: Term, linear: ConvTranspose, z: Place) -> list[Part]:
        axes = range(len(linear.stride))
        place = self.places[term.source]
        if not (_direct(term) and place.layout.shape == linear.input_shape):
            place = self._image(term, linear)
        layout, corner, parts = place.layout, place.layout.corner, []
        outs = z.start + z.layout.corner + np.arange(z.layout.shape[0]) * z.layout.strides[0]
        every = [list(enumerate(windows.phases(linear, axis))) for axis in axes]
        size = linear.weight.shape[2:]
        for combination in product(*every):
            shifts = [shift for _, (shift, _, _) in combination]
            entries = [entry for _, (_, entry, _) in combination]
            counts = tuple(count for _, (_, _, count) in combination)
            pairs = zip(shifts, layout.strides[1:], strict=True)
            at = summed([shift * stride for shift, stride in pairs], place.start + corner)
            pairs = zip(entries, steps(size), strict=True)
            which = summed([entry * stride for entry, stride in pairs])
            rows = windows.kernel_rows(linear, at, layout.strides[0], which)
            first = sum(r * z.layout.strides[axis + 1] for axis, (r, _) in enumerate(combination))
            inside = grid(counts, layout.strides[1:])
            apart = [s * step for s, step in zip(linear.stride, z.layout.strides[1:], strict=True)]
            out = grid(counts, apart, first)
            each = runs(inside, out)
            parts.append(Part(rows, outs, Segments(each)))
        return parts

    # the same by torch, worth a try where many weights are left
    def _dense(self, term: Term, z: Place, bias: np.ndarray, phi: Phi) -> Any:
        linear, source = term.map, self.places[term.source]
        density = linear.weight.count_nonzero() / linear.weight.numel()
        if term.fixed is not None or density < DENSE:
            return None
        weight, added = linear.weight.detach().cpu().clone(), torch.from_numpy(bias).to(self.like)
        flat = source.layout.shape == (linear.columns,) and z.layout.shape == (linear.rows,)
        if isinstance(linear, Dense) and flat:

            def multiply(arena: Tensor, n: int) -> None:
                x = source.view(arena, n).unflatten(0, (linear.positions, -1))
                there = z.view(arena, n).unflatten(0, (linear.positions, -1))
                there.copy_(phi(torch.matmul(weight, x).add_(added[:, None])))

            return multiply
        if isinstance(linear, Conv) and source.layout.shape == linear.input_shape:
            layer = replace(linear, weight=weight)

            def convolve(arena: Tensor, n: int) -> None:
                x = source.view(arena, n).movedim(-1, 0).flatten(1)
                y = phi(layer(x).unflatten(1, (len(weight), -1)) + added[:, None])
                z.view(arena, n).copy_(y.unflatten(2, linear.output_shape[1:]).movedim(0, -1))

            return convolve
        return None


# a fixed map as rows over the slots of what it reads
def _fixed_rows(fixed: Gather | Sparse, source: Slots) -> Rows:
    if isinstance(fixed, Gather):
        index = fixed.index.cpu().numpy()
        row = np.flatnonzero(index >= 0)
        return Rows.of(row, source[index[row]], np.ones(len(row)), fixed.rows)
    row, column = fixed.row.cpu().numpy(), fixed.column.cpu().numpy()
    return Rows.of(row, source[column], fixed.value.detach().cpu().double().numpy(), fixed.rows)


def _none(shape: Grid) -> tuple[Grid, Grid]:
    return (0,) * (len(shape) - 1), (0,) * (len(shape) - 1)


# Whether F s + c is computed before W reads it: sums, and what zero padding comes behind.
def _written(term: Term) -> bool:
    image = isinstance(term.map, Conv | ConvTranspose)
    return isinstance(term.fixed, Sparse) or (image and term.offset is not None)


# Whether rows of a term are written at several places, or as an image
def _at_places(term: Term) -> bool:
    return isinstance(term.map, Conv | ConvTranspose) or term.map.positions > 1
