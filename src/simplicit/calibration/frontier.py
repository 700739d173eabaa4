"""Teacher and model side by side on the calibration inputs, one equation after another.

Of the states, only those are kept that an equation further on still reads.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.batches import Batches
from simplicit.equations.equation import Equation
from simplicit.equations.layer_phi import StatePhi
from simplicit.equations.network import StateEquations
from simplicit.equations.stacked import Stacked
from simplicit.system import memory, workers

Sources = list[Tensor]
"""States of all earlier equations, empty where no one reads them any more, then the input."""

Settle = Callable[[Equation, Tensor], Tensor]
"""Finds the equilibrium of an equation that reads itself, for inputs."""


SAMPLES = 1000
"""Samples of short batches that are joined: fewer of them cost a product of features each."""

CACHE = 2**20
"""Bytes of pre-activations that are computed at once: a convolution of 16 channels on 32 × 32
places is three times as fast as where its result does not stay in the cache."""


class Frontier:
    """States of both networks up to one equation.

    Args:
        equations: The teacher.
        stream: Calibration inputs.
        own: Whether the model has states of its own; otherwise its equations read the teacher's.
        settle: Finds the model's states where its equation reads itself.
        executor: Takes samples side by side.

    Raises:
        InputError: If the states do not fit into memory.

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
    ) -> None:
        self._every, self._settle, self._executor = equations.layers, settle, executor
        like = equations.like
        self._inputs = _joined([batch.to(like).flatten(1) for batch in stream])
        self.m = sum(len(u) for u in self._inputs)
        self._last = [
            max((k for k, e in enumerate(self._every) if i in e.sources), default=-1)
            for i in range(len(equations.hidden))
        ]
        copies = 2 if own else 1
        size = max(copies * self._live(k) + e.size for k, e in enumerate(self._every))
        what = f"the states of {self.m} calibration inputs"
        memory.require(float(size * self.m * like.element_size()), what, like.device)
        self._teacher: list[Sources] = [[] for _ in self._inputs]
        self._model: list[Sources] = [[] for _ in self._inputs] if own else self._teacher
        self.index = 0
        self._targets = self._replay()

    # states, new ones included, that are there while equation k is at work
    def _live(self, k: int) -> int:
        earlier = zip(self._every[: k + 1], [*self._last, len(self._every)], strict=False)
        return sum(e.states for e, last in earlier if last >= k)

    def _reads_itself(self) -> bool:
        return self.index in self._every[self.index].sources

    @torch.no_grad()
    def _replay(self) -> list[Tensor]:
        if self.index == len(self._every):
            return []
        equation = self._every[self.index]
        pairs = zip(self._teacher, self._inputs, strict=True)
        if self._reads_itself():
            return [_settled(equation, [*states], u) for states, u in pairs]
        function = partial(_preactivations, equation)
        return [self._apply(function, [*states, u], equation.size) for states, u in pairs]

    def batches(self) -> Iterator[tuple[list[Tensor], Float[Tensor, "m rows"]]]:
        """Pass over the batches.

        Yields:
            What the model's next equation reads, and the teacher's pre-activations of it. An
            equation that reads itself reads the teacher's states.
        """
        for states, u, z in zip(self._model, self._inputs, self._targets, strict=True):
            own = [self._every[self.index].phi(z)] if self._reads_itself() else []
            yield [*states, *own, u], z

    @torch.no_grad()
    def advance(self, equation: Equation) -> None:
        """Go past the next equation.

        Args:
            equation: The model's.
        """
        for k, u in enumerate(self._inputs):
            if self._model is not self._teacher:
                if self._reads_itself():
                    assert self._settle is not None
                    x = self._settle(equation, u)
                else:
                    x = self._apply(partial(_states, equation), [*self._model[k], u], equation.size)
                self._model[k].append(x)
            teacher = self._every[self.index]
            x = self._apply(partial(_activated, teacher.phi), [self._targets[k]], teacher.size)
            self._teacher[k].append(x)
            # batch by batch, so that not all of both are there at once
            self._targets[k] = self._targets[k].new_empty(0)
            for states in (self._teacher[k], self._model[k]):
                for i, last in enumerate(self._last[: len(states)]):
                    if last <= self.index:
                        states[i] = states[i].new_empty(len(states[i]), 0)
        self.index += 1
        self._targets = self._replay()

    # `size` entries a sample, some samples after others
    def _apply(self, function: Callable[[Sources], Tensor], every: Sources, size: int) -> Tensor:
        count = max(1, CACHE // (size * every[-1].element_size()))
        parts = zip(*(part.split(count) for part in every), strict=True)
        found = list(workers.run(function, map(list, parts), self._executor))
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


def _joined(batches: list[Tensor]) -> list[Tensor]:
    groups: list[list[Tensor]] = [[]]
    for batch in batches:
        if groups[-1] and sum(map(len, groups[-1])) + len(batch) > SAMPLES:
            groups.append([])
        groups[-1].append(batch)
    return [torch.cat(group) if len(group) > 1 else group[0] for group in groups]


# The teacher has no feedback: its layers stand in one equation, and each pass settles one more.
def _settled(equation: Equation, states: Sources, u: Tensor) -> Tensor:
    z = u.new_zeros(len(u), equation.size)
    passes = len(equation.phi.blocks) if isinstance(equation.phi, Stacked) else 1
    for _ in range(passes):
        z = equation.preactivation([*states, equation.phi(z), u])
    return z
