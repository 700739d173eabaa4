"""What matching hands to workers, piece by piece, and what only the caller does, before any of it.

The pieces are those that `workers.run` gets: blocks of samples, tiles of rows, rows, levels,
problems. Their seconds are those of `Size`, for one worker, so their sum is the estimate's. Their
bytes are those of the arrays that they consist of, on the teacher's sizes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

from simplicit.calibration import moments
from simplicit.calibration.frontier import CACHE, IN_MEMORY, SAMPLES, live, side_by_side
from simplicit.calibration.rows import Rows
from simplicit.calibration.shifts import Shifts
from simplicit.convex import shared as unit_scale
from simplicit.equations.equation import Equation
from simplicit.equations.network import StateEquations
from simplicit.matching.expected.estimate import (
    LAYERS,
    LEVELS,
    MOMENTS,
    PATH,
    PRICES,
    SENSITIVITY,
    SWEEPS,
    Work,
    is_relu,
)
from simplicit.matching.expected.sizes import Size
from simplicit.matching.expected.stage import Pieces, Stage
from simplicit.matching.supports import CHOICES, REFITS
from simplicit.matching.ways import low_rank
from simplicit.matching.ways.low_rank_full import is_full
from simplicit.outputs import sensitivity
from simplicit.outputs.sweeps.samples import PARTS
from simplicit.sparsity import coupled, splitting
from simplicit.sparsity.choice import screened_first
from simplicit.system.rates import Rates
from simplicit.workers import shards
from simplicit.workers.run import LIGHT

COUNTED = Rates(2.0, 2.0, 2.0, inf, 0.0, 1.0)
"""Rates at which seconds are multiply-adds: two operations are one, and nothing else takes time."""

VECTORS = 12
"""Copies of its rows that a certified solve has, as in `Size.matched`."""


def stages(
    work: Work, m: int, rates: Rates, forward: float, at_once: int, batch: int = SAMPLES
) -> list[Stage]:
    """List what there is to do, in order.

    Args:
        work: What is asked for.
        m: Samples.
        rates: Of one worker.
        forward: Seconds of a pass of one sample through the network.
        at_once: Samples through which outputs are followed back at once, see `sensitivity`.
        batch: Samples of a batch as it is given.

    Returns:
        All stages. Their seconds add up to those of the estimate for one worker.
    """
    one = replace(work, workers=1)
    timed = _stages(one, m, replace(rates, parallel=1.0), forward, at_once, batch)
    counted = _stages(one, m, COUNTED, one.forward(COUNTED), at_once, batch)
    return [_with_products(*pair) for pair in zip(timed, counted, strict=True)]


def _with_products(timed: Stage, counted: Stage) -> Stage:
    pairs = zip(timed.pieces, counted.pieces, strict=True)
    own = tuple(replace(a, products=b.seconds) for a, b in pairs)
    # the caller's threads take what is light: see `workers.run`
    light = all(piece.products < LIGHT for piece in own)
    return replace(timed, pieces=own, products=counted.seconds, here=timed.here or light)


def _stages(
    work: Work, m: int, rates: Rates, forward: float, at_once: int, batch: int
) -> list[Stage]:
    recipe, every = work.recipe, work.equations.layers
    expected, fractions = work.estimate(m, rates, forward), work.fractions()
    counted, whole = max(float(sum(e.products for e in every)), 1.0), forward * m
    own = recipe.closed_loop
    most = side_by_side(live(work.equations, own) * work.equations.like.element_size())
    together = min(batch, most) * max(most // batch, 1)
    layers = [
        _Layer(
            work.equations, rows, size, m, _cut(m, together),
            every[rows.index].products / counted * whole,
        )
        for rows, size in zip(work.layers, work.sizes(m, rates), strict=True)
    ]  # fmt: skip
    found: list[Stage] = []
    if SENSITIVITY in expected.phases:
        some = sensitivity.looked_at(m)
        cut = _cut(some, -(-batch * some // m))
        found += _sensitivity(work, layers, forward * some, cut, at_once)
    if MOMENTS in expected.phases:
        for layer in layers:
            found += [*layer.states(MOMENTS), layer.moments(MOMENTS)]
        found += _prices(work, layers)
    for layer in layers:
        kept = recipe.chooses and recipe.relu_aware and is_relu(layer.equation)
        found += [*layer.states(LAYERS), layer.moments(LAYERS, kept and not layer.rows.uses)]
        found += _matched(work, layer)
        path = PATH if not recipe.chooses and MOMENTS in expected.phases else 1.0
        found.append(layer.certificate(LAYERS, path))
    for phase, count in ((SWEEPS, work.sweeps), (LEVELS, work.priced)):
        for layer, own in zip(layers, expected.layers, strict=True):
            each = [min(k, len(own.sweeps) - 1) for k in range(count)]
            total = sum(own.sweeps[k] for k in each)
            alone = sum(layer.size.swept_alone(fractions[k]) for k in each)
            if count:
                cut = _cut(m, -(-m // PARTS))
                parts = _parts(cut, total - alone)
                found.append(Stage(phase, own.name, "sweeps", parts, alone=alone, here=True))
    return found


# of so many things, parts of at most a size: (parts, things in each)
def _cut(total: int, size: int) -> list[tuple[int, int]]:
    full, rest = divmod(total, size)
    return [(full, size)] * bool(full) + [(1, rest)] * bool(rest)


# the same of each of several things
def _cut_each(parts: Iterable[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    return [(k * count, own) for k, total in parts for count, own in _cut(total, size)]


# those behind one another together, where there are many: see `workers.shards`
def _sharded(cut: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    each = ceil(sum(count for count, _ in cut) / shards.MOST)
    whole = sum(count * size for count, size in cut)
    return cut if each <= 1 else _cut(whole, each * max(size for _, size in cut))


# seconds in proportion to sizes; bytes for each of them, and for each piece
def _parts(
    cut: Sequence[tuple[int, int]],
    seconds: float,
    sent: float = 0.0,
    returned: float = 0.0,
    answer: float = 0.0,
) -> tuple[Pieces, ...]:
    whole = sum(count * size for count, size in cut)
    return tuple(
        Pieces(count, size, seconds * size / whole, size * sent, answer + size * returned)
        for count, size in cut
    )


def _repeated(found: Iterable[Stage], times: float) -> list[Stage]:
    return [replace(stage, times=times * stage.times) for stage in found] if times else []


@dataclass(frozen=True, eq=False)
class _Layer:
    """The steps of one layer's rows.

    Attributes:
        equations: The network, in the structure that is solved.
        rows: The rows.
        size: Their counts, for one worker.
        m: Samples.
        batches: How many batches there are, and how many samples each has.
        own: Seconds of all samples through its equation.
    """

    equations: StateEquations
    rows: Rows
    size: Size
    m: int
    batches: list[tuple[int, int]]
    own: float

    @property
    def equation(self) -> Equation:
        return self.equations.layers[self.rows.index]

    @property
    def item(self) -> int:
        return self.equations.like.element_size()

    @property
    def penalised(self) -> int:
        return self.size.N - int(self.rows.biased)

    # bytes of a sample's states that come with a piece: all that are in memory, and the input
    @property
    def sources(self) -> float:
        every, k = self.equations.layers, self.rows.index
        alive = [i for i in range(k) if any(i in e.sources for e in every[k:])]
        states = sum(every[i].states for i in alive)
        if self.m * self.item * states > IN_MEMORY:  # others stay on disk
            states = sum(every[i].states for i in self.equation.sources if 0 <= i < k)
        own = self.equation.states if k in self.equation.sources else 0
        return float(self.item * (states + own + self.equations.p))

    @property
    def weights(self) -> float:
        return _bytes([self.equation])

    @property
    def problem(self) -> float:
        K, N = self.size.K, self.size.N
        return 8.0 * (N**2 + K * N + 3 * N + 5 * K)

    def alone(self, phase: str, step: str, seconds: float) -> Stage:
        return Stage(phase, self.rows.name, step, alone=seconds)

    # through the equation, some samples after others, batch by batch; in the loop the model, too
    def states(self, phase: str) -> list[Stage]:
        equation, looped = self.equation, phase == LAYERS
        network, model = "states of the network", "states of the model"
        seconds = self.own * (1 + looped)
        if self.rows.index in equation.sources:
            return [self.alone(phase, network, seconds)]
        z, x = (float(self.item * n) for n in (equation.size, equation.states))
        if equation is self.equations.output:  # nothing reads its states
            return self._passed(phase, network, seconds, self.sources, z)
        # pre-activations come back, and go out again for φ
        found = self._passed(phase, network, self.own, self.sources + z, z + x)
        return [*found, *self._passed(phase, model, self.own, self.sources, x)] if looped else found

    def _passed(
        self, phase: str, step: str, seconds: float, sent: float, returned: float
    ) -> list[Stage]:
        at_once = max(1, CACHE // (self.equation.size * self.item))
        return [
            Stage(
                phase, self.rows.name, step,
                _parts(_cut(samples, at_once), seconds * samples / self.m, sent, returned),
                times=float(times), shared=self.weights, here=True,
            )
            for times, samples in self.batches
        ]  # fmt: skip

    @property
    def _blocks(self) -> Sequence[tuple[int, int]]:
        size, shifts = self.size, Shifts.of(self.rows, self.equation, self._drawn)
        samples = moments.in_block(self.m, size.positions, size.N - 1, shifts)
        return _sharded(_cut_each(self.batches, samples))

    @property
    def _drawn(self) -> int:
        return moments.drawn(self.m, self.size.positions, self.size.N - 1)

    # bytes of a sample's features and targets, and whether all of them are kept for new targets
    @property
    def _features(self) -> tuple[float, bool]:
        size, drawn = self.size, self._drawn
        values = drawn * (size.N - 1)
        if shifts := Shifts.of(self.rows, self.equation, drawn):
            values, drawn = shifts.size, size.positions
        own = size.groups * (size.item * values + (2.0 * self.item + 1) * drawn * size.K)
        return own, self.m * own <= moments.KEPT

    # blocks of samples, whose sums the caller adds up
    def _sums(
        self, phase: str, step: str, seconds: float, numbers: float, sent: float, kept: float = 0.0
    ) -> Stage:
        size, blocks = self.size, self._blocks
        answer = size.item * size.groups * numbers + 8.0 * size.groups * (2 * size.K + size.N) + 8
        added = min(size.added(size.groups * numbers) * sum(n for n, _ in blocks), seconds)
        parts = _parts(blocks, seconds - added, sent, kept, answer)
        held = size.groups * size.block
        return Stage(
            phase, self.rows.name, step, parts, alone=added, shared=self.weights, held=held
        )  # fmt: skip

    def moments(self, phase: str, keep: bool = False) -> Stage:
        d, K = self.size.N - 1, self.size.K
        sent = self.sources + self.item * self.equation.size
        features, fit = self._features
        numbers, kept = float(d * (d + K)), features if keep and fit else 0.0
        return self._sums(phase, "moments", self.size.moments, numbers, sent, kept)

    # features that are there already, or are read again
    def retargeted(self, times: float) -> list[Stage]:
        size, d = self.size, self.size.N - 1
        features, fit = self._features
        sent = features if fit else self.sources + self.item * self.equation.size
        numbers, step = float(d * size.K), "moments of new targets"
        found = self._sums(LAYERS, step, size.retargeted, numbers, sent)
        candidate = 8.0 * size.groups * size.K * size.N
        return _repeated([replace(found, shared=found.shared + candidate)], times)

    def eliminated(self, phase: str) -> list[Stage]:
        size, N = self.size, self.size.N
        cut = _cut(size.K, size.side)
        removals = max(self.penalised - size.kept / 4, 0.0)
        parts = _parts(cut, sum(n for n, _ in cut) * size.tile, 8.0 * N, 16.0 * removals)
        return [
            Stage(
                phase, self.rows.name, "elimination", parts, float(size.groups),
                alone=size.inverse, shared=8.0 * N**2 + N, held=16.0 * size.at_once * N**2,
            )
        ]  # fmt: skip

    def split(self, again: bool = False) -> list[Stage]:
        size, n, name = self.size, self.penalised, self.rows.name
        levels, matrix, rows = len(splitting.LEVELS), 4.0 * n**2, splitting.tile(size.K)
        own = (Pieces(levels, 1, size.system, 8.0, matrix),) if size.side_by_side else ()
        tiles = _parts(_cut(size.K, rows), size.steps, 16.0 * n + 8, 16.0 * n)
        return [
            Stage(
                LAYERS, name, "systems of splitting", own, float(size.groups),
                alone=0.0 if own else size.made(again) * size.system, shared=matrix, held=matrix,
            ),
            Stage(
                LAYERS, name, "splitting", tiles, float(size.levels * size.groups),
                shared=matrix, held=32.0 * rows * n,
            ),
        ]  # fmt: skip

    # all of a group's rows at one level
    def screened(self) -> Pieces:
        size, n = self.size, self.penalised
        sent = 4.0 * n**2 + 12.0 * size.K * n + 8.0 * size.K
        seconds, returned = size.steps + size.system, 16.0 * size.K * n
        return Pieces(size.groups, 1, seconds, sent, returned, self.rows.name)

    def among(self) -> Stage:
        size, count = self.size, self.size.candidates
        priced = max(count - size.kept / 4, 0.0)
        side = size.together
        seconds = size.price * size.priced / side
        own = _parts(_cut(size.priced, side), seconds, 16.0 * count, 8.0 * priced)
        return Stage(
            PRICES, self.rows.name, "prices among candidates", own, float(size.groups),
            shared=8.0 * self.penalised**2, held=24.0 * count**2,
        )  # fmt: skip

    def refit(self, part: float, together: bool) -> list[Stage]:
        size, N, s = self.size, self.size.N, self.size.support(part)
        each, groups = size.factorised(part) / size.K, float(size.groups)
        shared = self.problem + 8.0 * N
        found = [
            Stage(
                LAYERS, self.rows.name, "refit", (Pieces(size.K, 1, each, 9.0 * N, 16.0 * s),),
                groups, size.product, shared=shared, held=16.0 * s**2,
            )
        ]  # fmt: skip
        if together:
            step, turns = "refit of rows together", size.in_turn(part) + size.product
            if size.factors(part) <= coupled.KEPT:  # by threads of the caller, maybe by one
                alone = size.factorised(part) + turns
                found.append(Stage(LAYERS, self.rows.name, step, (), groups, alone))
            else:
                own = (Pieces(size.K, 1, each, 9.0 * N, 16.0 * s),)
                found.append(
                    Stage(
                        LAYERS, self.rows.name, step, own, groups, turns,
                        shared=shared, held=16.0 * s**2,
                    )
                )  # fmt: skip
        return found

    def certificate(self, phase: str, times: float = 1.0) -> Stage:
        size, N, tile = self.size, self.size.N, self.size.solved_together
        own = _parts(_cut(size.K, tile), size.solved, 16.0 * N + 40, 8.0 * N + 32)
        # the Gram, and its copy in unit scale; its inverses are made by each worker
        return Stage(
            phase, self.rows.name, "certificates", own, times * size.groups, once=size.prepared,
            shared=16.0 * N**2, held=unit_scale.INVERSES * N**2 + 8.0 * VECTORS * tile * N,
        )  # fmt: skip


def _bytes(layers: Iterable[Equation]) -> float:
    arrays = {id(t.weight): t.weight for e in layers for t in e.terms}
    arrays |= {id(e.bias): e.bias for e in layers if e.bias is not None}
    return float(sum(array.nbytes for array in arrays.values()))


def _sensitivity(
    work: Work,
    layers: Sequence[_Layer],
    whole: float,
    batches: Sequence[tuple[int, int]],
    at_once: int,
) -> list[Stage]:
    network, cut = work.network, _cut_each(batches, at_once)
    item, probes = network.like.element_size(), sensitivity.PROBES
    inputs, outputs, weights = item * network.p, item * network.q, _bytes(network.layers)
    numbers = sum(layer.size.groups * layer.size.K**2 for layer in layers)
    seconds = (1 + probes) * whole + probes * sum(layer.size.coupling for layer in layers)
    slopes = _sharded(cut)
    added = layers[0].size.added(numbers) * sum(n for n, _ in slopes) if layers else 0.0
    added = min(added, seconds)
    sent = inputs + 2.0 * network.q * probes  # the directions are single bytes
    held = sensitivity.MEMORY
    return [
        Stage(
            SENSITIVITY, "", "outputs", _parts(cut, whole, inputs, outputs),
            shared=weights, held=held,
        ),
        Stage(
            SENSITIVITY, "", "slopes", _parts(slopes, seconds - added, sent, answer=8.0 * numbers),
            alone=added, shared=weights, held=held,
        ),
    ]  # fmt: skip


# what the estimate has for prices, in pieces
def _prices(work: Work, layers: Sequence[_Layer]) -> list[Stage]:
    recipe = work.recipe
    if not recipe.chooses:
        return [layer.certificate(PRICES, PATH) for layer in layers]
    if recipe.units:
        return [layer.alone(PRICES, "prices of units", layer.size.units) for layer in layers]
    if is_full(recipe, work.equations):
        return []
    factors = [layer.alone(PRICES, "factors", layer.size.regressed) for layer in layers]
    if recipe.rank is not None and not recipe.both:
        return factors
    splits = recipe.method == "splitting"
    wide = [splits and screened_first(layer.size.K, layer.size.N) for layer in layers]
    found: list[Stage] = []
    if any(wide):
        short = [layer.screened() for layer in layers if layer.size.side_by_side]
        long = [(layer.size, layer.screened()) for layer in layers if not layer.size.side_by_side]
        levels = float(len(splitting.LEVELS))
        held = max(4.0 * layer.size.N**2 for layer in layers)
        alone = sum(own.count * own.seconds * size.levels / levels for size, own in long)
        found.append(Stage(PRICES, "", "rough prices", (*short,), levels, alone=alone, held=held))
    for layer, screen in zip(layers, wide, strict=True):
        found += [layer.among()] if screen else layer.eliminated(PRICES)
    if recipe.rank is None:
        return found
    first = [replace(own, phase=PRICES) for layer in layers for own in _choice(work, layer, 1.0)]
    return [*_repeated(found, 2), *first, *factors]


# one choice of supports, refitted
def _choice(work: Work, layer: _Layer, part: float, again: bool = False) -> list[Stage]:
    recipe, size = work.recipe, layer.size
    chosen = layer.eliminated(LAYERS) if recipe.method == "elimination" else layer.split(again)
    fits = part == CHOICES[-1] or size.factors(part) <= coupled.KEPT
    return [*chosen, *layer.refit(part, recipe.sensitivity and fits)]


# from moments to weights, as `Work` prices it
def _matched(work: Work, layer: _Layer) -> list[Stage]:
    recipe, size = work.recipe, layer.size
    if not recipe.chooses:
        return []
    aware = recipe.relu_aware and is_relu(layer.equation)
    again = REFITS if aware else 0
    if recipe.units:
        again = 0 if work.sweeps else again
        whole = layer.alone(LAYERS, "least squares", size.whole)
        return [*layer.retargeted(again), *_repeated([whole], 1 + again)]
    if is_full(recipe, work.equations):
        if layer.equation is work.equations.output:
            return [layer.alone(LAYERS, "least squares", size.whole)]
        within = layer.alone(LAYERS, "refit in the row space", size.within)
        path = layer.alone(LAYERS, "path of the nuclear norm", size.nuclear + 2 * size.within)
        return [path, *layer.retargeted(again), *_repeated([within], again)]
    if recipe.rank is not None:
        steps = again + (len(CHOICES) if aware or recipe.sensitivity else 1)
        factors = [layer.alone(LAYERS, "factors", size.regressed)]
        found = layer.retargeted(steps - 1 if aware else 0)
        if not recipe.both:
            return [*found, *_repeated(factors, steps)]
        rounds = low_rank.ROUNDS
        found += _repeated(_choice(work, layer, 1.0), (1 + steps) * rounds)
        return [*found, *_repeated(factors, (1 + steps) * (1 + rounds))]
    if work.sweeps:
        return _choice(work, layer, 1.0)
    earlier = CHOICES[:-1] if aware or recipe.sensitivity else ()
    found = layer.retargeted(len(earlier) + again if aware else 0)
    for number, part in enumerate((*earlier, 1.0)):
        found += _choice(work, layer, part, number > 0)
    return [*found, *_repeated(layer.refit(1.0, recipe.sensitivity), again)]
