"""Teacher and model side by side on the calibration inputs, one equation after another.

Of the states, only those are kept that an equation further on still reads; beyond a stated size, on
disk. So the memory they take does not grow with the number of samples.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.batches import Batches
from simplicit.calibration.spool import Spool, Spooled, beside, read
from simplicit.equations.equation import Equation
from simplicit.equations.layer_phi import StatePhi
from simplicit.equations.network import StateEquations
from simplicit.equations.stacked import Stacked
from simplicit.system import memory
from simplicit.system.allocator import give_back
from simplicit.workers.run import run

Sources = list[Tensor]
"""States of all earlier equations, empty where no one reads them any more, then the input."""

Settle = Callable[[Equation, Tensor], Tensor]
"""Finds the equilibrium of an equation that reads itself, for inputs."""


SAMPLES = 1000
"""Samples that go side by side, at most."""

FEWEST, TOGETHER = 100, 2**26
"""Of large states fewer, so that theirs take so many bytes; but not less than `FEWEST`."""

CACHE = 2**20
"""Bytes of pre-activations that are computed at once: a convolution of 16 channels on 32 × 32
places is three times as fast as where its result does not stay in the cache."""


IN_MEMORY = 2**29
"""Bytes of states that stay in memory; those of further equations are on disk. So are inputs of
more than a quarter of it: they are read once an equation."""

FREED = 2**24
"""Bytes of states from which on the allocator is asked what it keeps: to answer, it counts."""

Kept = Tensor | Spooled
Item = TypeVar("Item")
Found = TypeVar("Found")


class Frontier:
    """States of both networks up to one equation.

    Args:
        equations: The teacher.
        stream: Calibration inputs.
        own: Whether the model has states of its own; otherwise its equations read the teacher's.
        settle: Finds the model's states where its equation reads itself.
        executor: Takes samples side by side.
        folder: Where states are kept that are not in memory; the system's folder of temporary files
            by default.
        left: Entries of each equation's pre-activations, and of each hidden equation's states, that
            the model has; all without.

    Raises:
        InputError: If the states do not fit into memory, or onto the disk.

    Attributes:
        index: Which equation is next.
        m: Samples.
    """

    def __init__(
        self,
        equations: StateEquations,
        stream: Batches,
        own: bool,
        settle: Settle | None = None,
        executor: Executor | None = None,
        folder: Path | None = None,
        left: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    ) -> None:
        self._left = left
        self._every, self._settle, self._executor = equations.layers, settle, executor
        self._folder = folder
        like = equations.like
        self._item = like.element_size()
        self.m = stream.m
        self._last = _last(equations)
        sample = live(equations, own)
        many = stream.m * equations.p * self._item > IN_MEMORY / 4
        spool = Spool(folder) if many or stream.on_disk else None
        given = (batch.to(like).flatten(1) for batch in stream)
        self._on_disk = spool is not None
        self._inputs = _all_kept(_cut(given, side_by_side(sample * self._item)), spool)
        most, batch = (
            float(sample * n * self._item) for n in (self.m, max(map(len, self._inputs)))
        )
        what = f"the states of {self.m} calibration inputs"
        memory.require(min(most, IN_MEMORY + batch), what, like.device)
        memory.require_disk(max(most - IN_MEMORY, 0.0), what, folder)
        self._teacher: list[list[Kept]] = [[] for _ in self._inputs]
        self._model = [[] for _ in self._inputs] if own else self._teacher
        self._targets: list[Kept] = []
        self.index = 0
        self._targets = self._replay()

    def _reads_itself(self) -> bool:
        return self.index in self._every[self.index].sources

    # for so many numbers a sample: None is memory
    def _room(self, size: int) -> Spool | None:
        networks = [self._teacher] if self._model is self._teacher else [self._teacher, self._model]
        kept = [x for network in networks for states in network for x in states]
        held = sum(x.nbytes for x in (*kept, *self._targets) if isinstance(x, Tensor))
        if held + size * self.m * self._item <= IN_MEMORY:
            return None
        self._on_disk = True
        return Spool(self._folder)

    # states that the next equation reads, and the input
    def _sources(self, states: list[Kept], u: Tensor) -> Sources:
        wanted, nothing = self._every[self.index].sources, u.new_empty(len(u), 0)
        found = [
            read(x) if i in wanted or isinstance(x, Tensor) else nothing
            for i, x in enumerate(states)
        ]
        return [*found, u]

    @torch.no_grad()
    def _replay(self) -> list[Kept]:
        if self.index == len(self._every):
            return []
        equation = self._every[self.index]
        step = partial(_preactivations, equation)
        found = (
            _settled(equation, sources)
            if self._reads_itself()
            else self._apply(step, sources, equation.size)
            for sources in self._read(self._teacher)
        )
        return self._written(found, equation.size)

    # what the next equation reads, batch by batch
    def _read(self, network: list[list[Kept]]) -> Iterator[Sources]:
        def sources(pair: tuple[list[Kept], Kept]) -> Sources:
            return self._sources(pair[0], read(pair[1]))

        return self._look(sources, zip(network, self._inputs, strict=True))

    def _look(self, function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        return beside(function, items) if self._on_disk else map(function, items)

    # `size` numbers a sample
    def _written(self, found: Iterator[Tensor], size: int) -> list[Kept]:
        kept = _all_kept(found, self._room(size))
        if size * self.m * self._item >= FREED:
            give_back()
        return kept

    def batches(self) -> Iterator[tuple[list[Tensor], Float[Tensor, "m rows"]]]:
        """Pass over the batches.

        Yields:
            What the model's next equation reads, and the teacher's pre-activations of it. An
            equation that reads itself reads the teacher's states.
        """
        targets = self._look(read, self._targets)
        for (*earlier, u), z in zip(self._read(self._model), targets, strict=True):
            own = [self._every[self.index].phi(z)] if self._reads_itself() else []
            if self._left is not None:
                rows, kept = self._left
                z = z[:, rows[self.index]]
                if self._model is self._teacher:
                    earlier = [
                        x[:, some] if x.shape[1] else x
                        for x, some in zip(earlier, kept, strict=False)
                    ]
            yield [*earlier, *own, u], z

    @torch.no_grad()
    def advance(self, equation: Equation) -> None:
        """Go past the next equation.

        Args:
            equation: The model's.
        """
        if self._model is not self._teacher:
            self._go_on(self._model, self._own(equation), equation.states)
        self._go_on(self._teacher, self._activated(), equation.states)
        self._targets = []
        self.index += 1
        self._targets = self._replay()

    def _own(self, equation: Equation) -> Iterator[Tensor]:
        step = partial(_states, equation)
        for sources in self._read(self._model):
            if self._reads_itself():
                assert self._settle is not None
                yield self._settle(equation, sources[-1])
            else:
                yield self._apply(step, sources, equation.size)

    def _activated(self) -> Iterator[Tensor]:
        teacher = self._every[self.index]
        for k, z in enumerate(self._look(read, self._targets)):
            yield self._apply(partial(_activated, teacher.phi), [z], teacher.size)
            self._targets[k] = z.new_empty(0)

    # with the next states, batch by batch without those that are read no more
    def _go_on(self, network: list[list[Kept]], found: Iterator[Tensor], size: int) -> None:
        over = [i for i, last in enumerate(self._last) if i < self.index >= last]

        def fewer() -> Iterator[Tensor]:
            for states, x in zip(network, found, strict=True):
                for i in over:
                    states[i] = x.new_empty(len(x), 0)
                yield x if self._last[self.index] > self.index else x[:, :0].clone()

        for states, x in zip(network, self._written(fewer(), size), strict=True):
            states.append(x)

    # `size` entries a sample, some samples after others
    def _apply(self, function: Callable[[Sources], Tensor], every: Sources, size: int) -> Tensor:
        count = max(1, CACHE // (size * every[-1].element_size()))
        parts = list(zip(*(part.split(count) for part in every), strict=True))
        answers = run(function, map(list, parts), self._executor, work=0.0)
        if len(parts) == 1:
            return next(answers)
        whole, start = every[-1].new_empty(0), 0
        for part in answers:
            if not start:
                whole = part.new_empty(len(every[-1]), *part.shape[1:])
            whole[start : start + len(part)] = part
            start += len(part)
        return whole


@torch.no_grad()
def _preactivations(equation: Equation, sources: Sources) -> Tensor:
    return equation.preactivation(sources)


@torch.no_grad()
def _states(equation: Equation, sources: Sources) -> Tensor:
    return equation.phi(equation.preactivation(sources))


@torch.no_grad()
def _activated(phi: StatePhi, sources: Sources) -> Tensor:
    return phi(sources[0])


def live(equations: StateEquations, own: bool) -> int:
    """Count the numbers of a sample that are there at once.

    Args:
        equations: The network.
        own: Whether the model has states of its own.

    Returns:
        States of both, new ones included, and the pre-activations of the equation at work.
    """
    every, last = equations.layers, [*_last(equations), len(equations.layers)]
    most = 0
    for k, equation in enumerate(every):
        earlier = zip(every[: k + 1], last, strict=False)
        states = sum(e.states for e, read in earlier if read >= k)
        most = max(most, (2 if own else 1) * states + equation.size)
    return most


# the last equation that reads each hidden one's states; −1 where none does
def _last(equations: StateEquations) -> list[int]:
    return [
        max((k for k, e in enumerate(equations.layers) if i in e.sources), default=-1)
        for i in range(len(equations.hidden))
    ]


def side_by_side(size: float) -> int:
    """Say how many samples go side by side; of longer batches as many, of short ones some joined.

    Args:
        size: Bytes of a sample's states that are there at once.

    Returns:
        The most.
    """
    return min(max(int(TOGETHER // max(size, 1.0)), FEWEST), SAMPLES)


def _all_kept(found: Iterable[Tensor], spool: Spool | None) -> list[Kept]:
    return list(found) if spool is None else list(beside(spool.keep, found))


def _cut(batches: Iterable[Tensor], most: int) -> Iterator[Tensor]:
    group: list[Tensor] = []
    for batch in batches:
        for part in batch.split(most):
            if group and sum(map(len, group)) + len(part) > most:
                yield torch.cat(group) if len(group) > 1 else group[0]
                group = []
            group.append(part)
    yield torch.cat(group) if len(group) > 1 else group[0]


# The teacher has no feedback: its layers stand in one equation, and each pass settles one more.
def _settled(equation: Equation, sources: Sources) -> Tensor:
    *states, u = sources
    z = u.new_zeros(len(u), equation.size)
    passes = len(equation.phi.blocks) if isinstance(equation.phi, Stacked) else 1
    for _ in range(passes):
        z = equation.preactivation([*states, equation.phi(z), u])
    return z
