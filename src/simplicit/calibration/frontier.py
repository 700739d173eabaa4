"""Teacher and model side by side on the calibration inputs, one equation after another.

Of the states, only those are kept that an equation further on still reads; beyond a stated size, on
disk. So the memory they take does not grow with the number of samples.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.batches import Batches
from simplicit.calibration.spool import Spool, Spooled, read
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
"""Samples of short batches that are joined: fewer of them cost a product of features each."""

CACHE = 2**20
"""Bytes of pre-activations that are computed at once: a convolution of 16 channels on 32 × 32
places is three times as fast as where its result does not stay in the cache."""


IN_MEMORY = 2**29
"""Bytes of states that stay in memory; those of further equations are on disk. So are inputs of
more than a quarter of it: they are read once an equation."""

Kept = Tensor | Spooled


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
        many = stream.m * equations.p * self._item > IN_MEMORY / 4
        spool = Spool(folder) if many or stream.on_disk else None
        inputs = _joined(batch.to(like).flatten(1) for batch in stream)
        self._inputs = [_kept(u, spool) for u in inputs]
        self.m = stream.m
        self._last = [
            max((k for k, e in enumerate(self._every) if i in e.sources), default=-1)
            for i in range(len(equations.hidden))
        ]
        copies = 2 if own else 1
        sample = max(copies * self._live(k) + e.size for k, e in enumerate(self._every))
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

    # states, new ones included, that are there while equation k is at work
    def _live(self, k: int) -> int:
        earlier = zip(self._every[: k + 1], [*self._last, len(self._every)], strict=False)
        return sum(e.states for e, last in earlier if last >= k)

    def _reads_itself(self) -> bool:
        return self.index in self._every[self.index].sources

    # for so many numbers a sample: None is memory
    def _room(self, size: int) -> Spool | None:
        networks = [self._teacher] if self._model is self._teacher else [self._teacher, self._model]
        kept = [x for network in networks for states in network for x in states]
        held = sum(x.nbytes for x in (*kept, *self._targets) if isinstance(x, Tensor))
        return None if held + size * self.m * self._item <= IN_MEMORY else Spool(self._folder)

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
        equation, found = self._every[self.index], []
        spool = self._room(equation.size)
        for states, u in zip(self._teacher, map(read, self._inputs), strict=True):
            sources = self._sources(states, u)
            if self._reads_itself():
                z = _settled(equation, sources[:-1], u)
            else:
                z = self._apply(partial(_preactivations, equation), sources, equation.size)
            found.append(_kept(z, spool))
            give_back()
        return found

    def batches(self) -> Iterator[tuple[list[Tensor], Float[Tensor, "m rows"]]]:
        """Pass over the batches.

        Yields:
            What the model's next equation reads, and the teacher's pre-activations of it. An
            equation that reads itself reads the teacher's states.
        """
        for states, given, target in zip(self._model, self._inputs, self._targets, strict=True):
            u, z = read(given), read(target)
            own = [self._every[self.index].phi(z)] if self._reads_itself() else []
            earlier = self._sources(states, u)[:-1]
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
        teacher, own = self._every[self.index], self._model is not self._teacher
        spool = self._room((1 + own) * teacher.states)
        for k, u in enumerate(map(read, self._inputs)):
            if own:
                if self._reads_itself():
                    assert self._settle is not None
                    x = self._settle(equation, u)
                else:
                    sources = self._sources(self._model[k], u)
                    x = self._apply(partial(_states, equation), sources, equation.size)
                self._model[k].append(_kept(x, spool))
            z = read(self._targets[k])
            x = self._apply(partial(_activated, teacher.phi), [z], teacher.size)
            self._teacher[k].append(_kept(x, spool))
            # batch by batch, so that not all of both are there at once
            self._targets[k] = u.new_empty(0)
            for states in (self._teacher[k], self._model[k]):
                for i, last in enumerate(self._last[: len(states)]):
                    if last <= self.index:
                        states[i] = u.new_empty(len(u), 0)
            give_back()
        self.index += 1
        self._targets = self._replay()

    # `size` entries a sample, some samples after others
    def _apply(self, function: Callable[[Sources], Tensor], every: Sources, size: int) -> Tensor:
        count = max(1, CACHE // (size * every[-1].element_size()))
        parts = zip(*(part.split(count) for part in every), strict=True)
        found = list(run(function, map(list, parts), self._executor, work=0.0))
        return torch.cat(found) if len(found) > 1 else found[0]


@torch.no_grad()
def _preactivations(equation: Equation, sources: Sources) -> Tensor:
    return equation.preactivation(sources)


@torch.no_grad()
def _states(equation: Equation, sources: Sources) -> Tensor:
    return equation.phi(equation.preactivation(sources))


@torch.no_grad()
def _activated(phi: StatePhi, sources: Sources) -> Tensor:
    return phi(sources[0])


def _kept(x: Tensor, spool: Spool | None) -> Kept:
    return x if spool is None else spool.keep(x)


def _joined(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    group: list[Tensor] = []
    for batch in batches:
        if group and sum(map(len, group)) + len(batch) > SAMPLES:
            yield torch.cat(group) if len(group) > 1 else group[0]
            group = []
        group.append(batch)
    yield torch.cat(group) if len(group) > 1 else group[0]


# The teacher has no feedback: its layers stand in one equation, and each pass settles one more.
def _settled(equation: Equation, states: Sources, u: Tensor) -> Tensor:
    z = u.new_zeros(len(u), equation.size)
    passes = len(equation.phi.blocks) if isinstance(equation.phi, Stacked) else 1
    for _ in range(passes):
        z = equation.preactivation([*states, equation.phi(z), u])
    return z
