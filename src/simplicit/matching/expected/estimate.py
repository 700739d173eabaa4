"""What matching is going to take, phase by phase, before any of it is done.

`Size` prices the steps of one layer; here they are added up over layers, phases and sweeps.
Constants that no count gives were fitted to the networks of `benchmarks/estimate.py`, which prints
what is expected beside what then happens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from simplicit.calibration.frontier import IN_MEMORY, live, side_by_side
from simplicit.calibration.moments import BATCH
from simplicit.calibration.rows import Rows, shared
from simplicit.equations.equation import Equation
from simplicit.equations.network import StateEquations
from simplicit.equations.phi import Phi
from simplicit.equations.stacked import Stacked
from simplicit.matching.expected.sizes import Size
from simplicit.matching.supports import CHOICES, REFITS
from simplicit.matching.ways import low_rank
from simplicit.matching.ways.low_rank_full import is_full
from simplicit.outputs import downstream, sensitivity
from simplicit.outputs.sweeps import sweeps
from simplicit.recipe import Recipe
from simplicit.sparsity import coupled
from simplicit.sparsity.budget import first_budget
from simplicit.sparsity.choice import screened_first
from simplicit.system.rates import Rates

FLIGHT = 3.0
"""Batches of states between memory and disk: read ahead, at work, and written."""

SENSITIVITY = "sensitivity of the outputs"
MOMENTS = "moments of the layers"
PRICES = "spending the budget over the rows"
LAYERS = "matching the layers"
SWEEPS = "matching the outputs (rows)"
LEVELS = "finding the level of robustness"

PATH = 6.0
"""Certified solves until a penalty meets a budget. Fitted."""

GRAMS = 1.5
"""Grams of a row in all sweeps together: they are kept from one to the next. Fitted."""

SAVED = 4.0
"""Times that a state is there in the pass back. Fitted."""

FIXED = 2e7
"""Bytes that buffers of products and threads take in any case. Fitted."""


@dataclass(frozen=True)
class Layer:
    """What the rows of a layer are going to take.

    Attributes:
        name: The layer's.
        rows: How many there are.
        moments: Seconds of its Grams on the network's own states.
        prices: Seconds of the prices of its weights.
        states: Seconds of its states and its Grams in the loop.
        first: Seconds of one choice of supports, refitted.
        further: Seconds of all further choices and refits.
        certificate: Seconds of the certified solve.
        sweeps: Seconds of each sweep.
        planning: Bytes while prices are found.
        matching: Bytes while it is matched.
    """

    name: str
    rows: int
    moments: float
    prices: float
    states: float
    first: float
    further: float
    certificate: float
    sweeps: tuple[float, ...]
    planning: float
    matching: float

    @property
    def seconds(self) -> float:
        """All of its seconds."""
        return self.moments + self.prices + self.matched + sum(self.sweeps)

    @property
    def matched(self) -> float:
        """Seconds in the loop over layers."""
        return self.states + self.first + self.further + self.certificate


@dataclass(frozen=True)
class Estimate:
    """What matching is going to take.

    Attributes:
        layers: Each layer with rows, first layer first.
        phases: Description of each task -> seconds of its parts.
        memory: Bytes of each task, beyond what is taken already.
    """

    layers: list[Layer]
    phases: dict[str, list[float]]
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds of all phases."""
        return sum(map(sum, self.phases.values()))

    @property
    def planned(self) -> float:
        """Seconds before the first layer is matched."""
        return sum(sum(self.phases.get(name, [])) for name in (SENSITIVITY, MOMENTS, PRICES))

    @property
    def swept(self) -> list[float]:
        """Seconds of each sweep on the outputs."""
        count = sum(layer.rows for layer in self.layers)
        every = self.phases.get(SWEEPS, [])
        return [sum(every[k : k + count]) for k in range(0, len(every), max(count, 1))]

    @property
    def least(self) -> float:
        """Seconds with one choice of supports, no certificates, and no sweeps."""
        return self.planned + sum(layer.states + layer.first for layer in self.layers)

    @property
    def peak(self) -> float:
        """Bytes of the phase that takes most."""
        return max(self.memory.values())

    @property
    def longest(self) -> list[Layer]:
        """The layers, those that take most of the time first."""
        return sorted(self.layers, key=lambda layer: -layer.seconds)


@dataclass(frozen=True)
class Work:
    """What there is to do.

    Args:
        network: The network as captured.
        equations: The same in the structure that is solved.
        layers: Its rows.
        recipe: What is asked for.
        sweeps: Sweeps on the outputs.
        budget: Weights to spend; None without a sparsity.
        workers: Parallel blocks of rows.
        priced: Sweeps in which a level of robustness is looked for.
    """

    network: StateEquations
    equations: StateEquations
    layers: Sequence[Rows]
    recipe: Recipe
    sweeps: int
    budget: int | None
    workers: int
    priced: int = 0

    def estimate(self, m: int, rates: Rates, forward: float | None = None) -> Estimate:
        """Say what it takes.

        Args:
            m: Samples.
            rates: Of this machine.
            forward: Seconds of a pass of one sample through the network, if timed.

        Returns:
            Seconds and bytes.
        """
        every = self.equations.layers
        counted = float(sum(e.products for e in every))
        pass_ = (self.forward(rates) if forward is None else forward) * m
        pass_ /= max(min(rates.parallel, m / BATCH), 1.0)
        planned = self.budget is not None or self.recipe.rank is not None
        chosen = self.recipe.chooses
        fractions = self.fractions()
        found, behind = [], pass_
        sizes = self.sizes(m, rates)
        # wide rows are compared with all others
        screened = self.recipe.method == "splitting" and any(
            screened_first(size.K, size.N) for size in sizes
        )
        for rows, size in zip(self.layers, sizes, strict=True):
            part = every[rows.index].products / max(counted, 1.0)
            behind = max(behind - pass_ * part, 0.0)
            found.append(self._layer(size, rows, part * pass_, behind, fractions, screened))
        felt = chosen and self.recipe.sensitivity
        phases: dict[str, list[float]] = {}
        if felt:
            squares = sum(size.coupling for size in sizes)
            directions, part = sensitivity.PROBES, sensitivity.looked_at(m) / m
            phases[SENSITIVITY] = [(2 + directions) * part * pass_ + directions * squares]
        if planned:
            phases[MOMENTS] = [layer.moments for layer in found]
        if planned and not is_full(self.recipe, self.equations):
            phases[PRICES] = [sum(layer.prices for layer in found)]
        phases[LAYERS] = [layer.matched for layer in found]
        for task, count in ((SWEEPS, self.sweeps), (LEVELS, self.priced)):
            if count:
                phases[task] = [
                    layer.sweeps[min(k, len(layer.sweeps) - 1)] / layer.rows
                    for k in range(count)
                    for layer in found
                    for _ in range(layer.rows)
                ]
        return Estimate(found, phases, self._memory(m, found, rates, set(phases)))

    def forward(self, rates: Rates) -> float:
        """Say how long one sample takes through the network.

        Args:
            rates: Of this machine.

        Returns:
            Seconds.
        """
        every = self.network.layers
        states = sum(e.size + e.states for e in every)
        return 2.0 * sum(e.products for e in every) / rates.float32 + 16.0 * states / rates.memory

    def fractions(self) -> list[float]:
        """Say what part of the weights is non-zero.

        Returns:
            It while layers are matched, which is the first sweep's; then in each further sweep.
        """
        every = self.equations.layers
        total = sum(rows.weights(every[rows.index]).numel() for rows in self.layers)
        if self.budget is None or not total:
            return [1.0]
        last = self.budget
        if not self.sweeps:
            return [min(last / total, 1.0)]
        first = last
        if not any(shared(rows, every) for rows in self.layers):
            first = first_budget(last, self.network.nonzeros)
        falls = max(self.sweeps - sweeps.REFITS - 1, 1)
        parts = [first * (last / max(first, 1)) ** (k / falls) for k in range(falls + 1)]
        parts += [last] * sweeps.REFITS
        return [min(part / total, 1.0) for part in parts]

    def sizes(self, m: int, rates: Rates) -> list["Size"]:
        """Count the rows of every layer.

        Args:
            m: Samples.
            rates: Of this machine.

        Returns:
            The counts of each layer.
        """
        every, first = self.equations.layers, self.fractions()[0]
        patterned = self.recipe.pattern is not None or self.recipe.blocks is not None
        return [
            Size.of(rows, every[rows.index], m, self.workers, first, rates, patterned)
            for rows in self.layers
        ]

    def _layer(
        self,
        size: "Size",
        rows: Rows,
        own: float,
        behind: float,
        fractions: list[float],
        screened: bool,
    ) -> Layer:
        recipe, equation = self.recipe, self.equations.layers[rows.index]
        chosen, budget = recipe.chooses, self.budget is not None or recipe.rank is not None
        prices = first = further = 0.0
        certificate = size.certificate
        if chosen:
            prices = self._price(size, screened)
            once, more = size.split(), size.split(again=True)
            if recipe.method == "elimination":
                once = more = size.eliminated
            last = size.refit(1.0) + (size.coupled(1.0) if recipe.sensitivity else 0.0)
            first = once + last
            aware = recipe.relu_aware and is_relu(equation)
            if recipe.units:
                prices, first = size.units, size.whole
                again = REFITS if aware and not self.sweeps else 0
                further = again * (size.whole + size.retargeted)
            elif is_full(recipe, self.equations):
                inside = equation is not self.equations.output
                again = REFITS if aware else 0
                prices, first = 0.0, size.nuclear + 2 * size.within if inside else size.whole
                further = again * (size.retargeted + size.within)
            elif recipe.rank is not None:
                prices, first, further = self._ranks(size, prices, first, aware)
            elif not self.sweeps:
                earlier = CHOICES[:-1] if aware or recipe.sensitivity else ()
                again = REFITS if aware else 0
                for part in earlier:
                    together = recipe.sensitivity and size.factors(part) <= coupled.KEPT
                    further += more + size.refit(part)
                    further += size.coupled(part) if together else 0.0
                further += again * last
                further += (len(earlier) + again) * size.retargeted if aware else 0.0
        elif budget:
            prices, certificate = PATH * certificate, PATH * certificate
        swept = [
            size.swept(part, min(self.network.q, downstream.EXACT), behind) for part in fractions
        ]
        if swept and (self.sweeps or self.priced):
            gram = size.weighted(fractions[0], min(self.network.q, downstream.EXACT))
            if self.priced and not self.sweeps:
                swept = [swept[0] + gram]
            else:
                count = max(self.sweeps, 1)
                swept = [s + (GRAMS - 1) * gram / count for s in swept]
                swept[0] += gram
        return Layer(
            rows.name,
            size.groups * size.K,
            moments=own + size.moments if budget else 0.0,
            prices=prices,
            states=2 * own + size.moments,
            first=first,
            further=further,
            certificate=certificate,
            sweeps=tuple(swept) if self.sweeps or self.priced else (),
            planning=size.planned,
            matching=size.matched,
        )

    # by factors: prices, one choice, and all further ones
    def _ranks(
        self, size: "Size", prices: float, first: float, aware: bool
    ) -> tuple[float, float, float]:
        each, steps = size.regressed, len(CHOICES) if aware or self.recipe.sensitivity else 1
        steps += REFITS if aware else 0
        further = (steps - 1) * (size.retargeted if aware else 0.0)
        if not self.recipe.both:
            return each, each, further + (steps - 1) * each
        once = low_rank.ROUNDS * first + (1 + low_rank.ROUNDS) * each
        # prices are found twice, and the first step has two starts
        return 2 * prices + first + each, 2 * once, further + (steps - 1) * once

    def _price(self, size: "Size", screened: bool) -> float:
        exact = screened and screened_first(size.K, size.N)
        return screened * size.split() + (size.among if exact else size.eliminated)

    def _memory(
        self, m: int, found: Sequence[Layer], rates: Rates, phases: set[str]
    ) -> dict[str, float]:
        like, sizes = self.equations.like, self.sizes(m, rates)
        item = like.element_size()
        inputs = float(m * self.equations.p * item)
        grams = sum(size.gram for size in sizes)
        held = [float(item * live(self.equations, own)) for own in (False, True)]
        states = [min(m * one, IN_MEMORY + FLIGHT * side_by_side(one) * one) for one in held]
        own = 2 if self.recipe.closed_loop else 1
        whole = sum(e.size + e.states for e in self.equations.layers)
        most = max((layer.planning for layer in found), default=0.0)
        memory = {
            SENSITIVITY: inputs
            + min(sensitivity.MEMORY, SAVED * item * sensitivity.looked_at(m) * whole),
            MOMENTS: inputs + states[0] + grams + max(s.reading for s in sizes),
            PRICES: inputs + grams + most,
            LAYERS: inputs + states[own - 1] + max(layer.matching for layer in found),
        }
        longest = max(size.features for size in sizes)
        outputs = min(self.network.q, downstream.EXACT) + 1
        felt = max(size.felt for size in sizes) * outputs
        swept = 2 * inputs + item * (m * (2 * whole + max(s.N for s in sizes)) + 6 * longest)
        memory[SWEEPS] = memory[LEVELS] = swept + item * 4.0 * felt
        return {task: FIXED + value for task, value in memory.items() if task in phases}


def largest(work: Work, rates: Rates, m: int, free: float) -> int:
    """Find how many samples fit into memory.

    Args:
        work: What there is to do.
        rates: Of any machine.
        m: So many do not.
        free: Bytes.

    Returns:
        The most that fit; 0 if not even one does.
    """
    low, high = 0, m
    while high - low > 1:
        middle = (low + high) // 2
        fits = work.estimate(middle, rates, 0.0).peak <= free
        low, high = (middle, high) if fits else (low, middle)
    return low


def is_relu(equation: Equation) -> bool:
    """Say whether all states are those of a ReLU.

    Args:
        equation: Their equation.

    Returns:
        Whether they are.
    """
    phi = equation.phi
    phis = [block.phi for block in phi.blocks] if isinstance(phi, Stacked) else [phi]
    return all(isinstance(own, Phi) and own.name == "relu" for own in phis)
