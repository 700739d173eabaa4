"""Teacher and model side by side on the calibration inputs, one equation after another.

Of the states, only those are kept that an equation further on still reads.
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.batches import Batches
from simplicit.equations.network import Equation, StateEquations
from simplicit.system import memory

Sources = list[Tensor]
"""States of all earlier equations, empty where no one reads them any more, then the input."""


class Frontier:
    """States of both networks up to one equation.

    Args:
        equations: The teacher.
        stream: Calibration inputs.
        own: Whether the model has states of its own; otherwise its equations read the teacher's.

    Raises:
        InputError: If the states do not fit into memory.

    Attributes:
        index: Which equation is next.
        m: Samples.
    """

    def __init__(self, equations: StateEquations, stream: Batches, own: bool) -> None:
        self._every = equations.layers
        like = equations.like
        self._inputs = [batch.to(like).flatten(1) for batch in stream]
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

    def _replay(self) -> list[Tensor]:
        if self.index == len(self._every):
            return []
        equation = self._every[self.index]
        pairs = zip(self._teacher, self._inputs, strict=True)
        return [equation.preactivation([*states, u]) for states, u in pairs]

    def batches(self) -> Iterator[tuple[list[Tensor], Float[Tensor, "m rows"]]]:
        """Pass over the batches.

        Yields:
            What the model's next equation reads, and the teacher's pre-activations of it.
        """
        for states, u, z in zip(self._model, self._inputs, self._targets, strict=True):
            yield [*states, u], z

    def advance(self, equation: Equation) -> None:
        """Go past the next equation.

        Args:
            equation: The model's.
        """
        for k, u in enumerate(self._inputs):
            if self._model is not self._teacher:
                z = equation.preactivation([*self._model[k], u])
                self._model[k].append(equation.phi(z))
            self._teacher[k].append(self._every[self.index].phi(self._targets[k]))
            # batch by batch, so that not all of both are there at once
            self._targets[k] = self._targets[k].new_empty(0)
            for states in (self._teacher[k], self._model[k]):
                for i, last in enumerate(self._last[: len(states)]):
                    if last <= self.index:
                        states[i] = states[i].new_empty(len(states[i]), 0)
        self.index += 1
        self._targets = self._replay()
