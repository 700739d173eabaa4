"""Counts of one layer's rows, and the seconds and bytes that each of their steps takes.

Operations and bytes are counted, and divided by the rates of this machine. Constants that no count
gives were fitted to the networks of `benchmarks/estimate.py`.
"""

from dataclasses import dataclass
from math import ceil

from simplicit.calibration.moments import BATCH, KEPT, drawn, in_block, precision
from simplicit.calibration.rows import Rows
from simplicit.calibration.shifts import Shifts
from simplicit.convex import shared as unit_scale
from simplicit.equations.equation import Equation
from simplicit.matching.supports import CHOICES
from simplicit.outputs.sensitivity import looked_at
from simplicit.outputs.sweeps import sweeps
from simplicit.outputs.sweeps.samples import PARTS, threaded
from simplicit.solvers.loop import PRODUCTS
from simplicit.solvers.settings import DEFAULTS
from simplicit.sparsity import coupled, splitting
from simplicit.sparsity.choice import PRICED, SPARE, screened_first
from simplicit.sparsity.elimination import of_rows
from simplicit.sparsity.elimination.one_row import LAZY
from simplicit.sparsity.pattern import UNSTRUCTURED
from simplicit.system.rates import Rates

PASSES = 18.0
"""Times that the features of a Gram are read or written, its products apart. Fitted."""

CALLS = 60.0
"""Operations on next to nothing for each refit of a row, and for each `LAZY` of its removals.
Fitted."""

NEAR = 3.5
"""Times that an elimination's numbers, which stay near the processor, are read faster than those of
a long vector. Fitted."""

INVERSES = 6.0
"""Inverses of the whole Gram, float64, in a certified solve. Fitted."""

READ, FELT = 7.0, 30.0
"""Times that a row's features, and the derivatives of the outputs in it, are read or written in a
sweep. Fitted."""

SECOND = 0.4
"""Part of a thread's work that each further thread adds in a sweep, where memory and Python's lock
let them wait for each other. Fitted."""

FOLLOWED = 0.2
"""Part of a pass through the layers behind a row that each derivative of the outputs takes. Fitted.
"""

SINGULAR = 12.0
"""Operations of singular values and both bases, for each entry and each of the shorter side: Golub,
Van Loan, "Matrix Computations", section 8.6, have more for square matrices, fewer for long ones."""

LEVELED = 1000.0
"""Steps of the nuclear norm at all levels of a path: 300 to 1,400 for 112 states of
Fashion-MNIST."""

REFITTED = 100.0
"""Steps of a refit within a row space: 20 to 300 there."""

EACH = 800.0
"""Products with the Gram for each row that is too wide for working sets. Fitted."""

CLIMBED = 0.5
"""Part of splitting's levels after which the longest rows have settled. Measured on 8,192 features.
"""

STAGES = 15_000.0
"""Operations on next to nothing of a certified solve. Fitted."""


@dataclass(frozen=True)
class Size:
    """Counts of one layer's rows, and the seconds and bytes that follow.

    Attributes:
        groups: Groups of channels.
        K: Rows of each.
        N: Features of a row, the bias among them.
        positions: Positions of a sample.
        m: Samples.
        n: Rows of the data.
        numbers: Features and targets that are read, without patches of shifted images.
        square: Multiplications of each row of the data for the Gram.
        samples: Of a block.
        block: Bytes of its features, of each group.
        kept: Weights of a row.
        least: Rows of a piece of an elimination, at least.
        item: Bytes of a number.
        workers: Blocks side by side.
        rates: Of this machine.
    """

    groups: int
    K: int
    N: int
    positions: int
    m: int
    n: int
    numbers: float
    square: float
    samples: int
    block: float
    kept: float
    least: int
    item: int
    workers: int
    rates: Rates

    @classmethod
    def of(
        cls,
        rows: Rows,
        equation: Equation,
        m: int,
        workers: int,
        part: float,
        rates: Rates,
        patterned: bool = False,
    ) -> "Size":
        """Count.

        Args:
            rows: The rows.
            equation: Their equation.
            m: Samples.
            workers: Blocks side by side.
            part: Part of the weights that stay.
            rates: Of this machine.
            patterned: Whether weights have their places in a pattern.

        Returns:
            The counts.
        """
        W = rows.weights(equation)
        groups, K, d = W.shape
        P = rows.positions(equation)
        kept, N, n = max(part * d, 1.0), d + 1, m * drawn(m, P, d)
        item = precision(n, d, W.dtype).itemsize
        square, numbers = N * (N + 1) / 2, float(n * (N + K))
        samples = min(m, in_block(m, P, d, None))
        block = 3.0 * item * samples * (n / m) * (N + 2 * K)
        if shifts := Shifts.of(rows, equation, n // m):
            n, square, item = m * P, shifts.cost * N**2 / 2, 8
            samples, numbers = min(m, in_block(m, P, d, shifts)), float(m * shifts.size + n * K)
            block = 3.0 * 8 * samples * (shifts.size + 2 * P * K)
        alone = of_rows.by_itself(W, UNSTRUCTURED) and not patterned
        least = 1 if alone else of_rows.LEAST
        return cls(
            groups, K, N, P, m, n, numbers, square, samples, block, kept, least, item, workers,
            rates,
        )  # fmt: skip

    # pieces side by side
    def _side(self, pieces: float) -> float:
        return max(min(self.rates.parallel, pieces), 1.0)

    # threads of a sweep, by what they do
    @property
    def _shared(self) -> float:
        many = PARTS if threaded(self.features) else 1
        return 1 + SECOND * (self._side(many) - 1)

    def _product(self, operations: float) -> float:
        return operations / (self.rates.float32 if self.item <= 4 else self.rates.float64)

    def _moved(self, numbers: float, item: int = 8) -> float:
        return numbers * item / self.rates.memory

    @property
    def coupling(self) -> float:
        """Seconds of the products of its slopes, for one direction of the outputs."""
        m = looked_at(self.m)
        count = self.groups * m * self.positions
        one = self._product(2.0 * count * self.K**2) + self._moved(3.0 * count * self.K, self.item)
        return one / self._side(m / BATCH)

    @property
    def moments(self) -> float:
        """Seconds of its Grams."""
        products = self._product(2.0 * self.n * (self.square + self.N * self.K))
        moved = self._moved(PASSES * self.numbers, self.item)
        return self.groups * (products + moved) / self._side(self.m / self.samples)

    def added(self, numbers: float) -> float:
        """Price a piece's answer, in its own precision, that is added to a sum in float64.

        Args:
            numbers: In the answer.

        Returns:
            Seconds.
        """
        return self._moved(numbers, 16 + self.item)

    @property
    def retargeted(self) -> float:
        """Seconds of moments with new targets."""
        products = self._product(4.0 * self.n * self.N * self.K)
        moved = self._moved(10.0 * self.n * self.K, self.item)
        return self.groups * (products + moved) / self._side(self.m / self.samples)

    @property
    def steps(self) -> float:
        """Seconds of the steps of splitting at one level, for the rows of a group."""
        return splitting.STEPS * (
            2.0 * self.K * self.N**2 / self.rates.float32
            + self._moved(10.0 * self.K * self.N, 4)
            + 10 * self.rates.call
        )

    @property
    def system(self) -> float:
        """Seconds until a level of splitting can be solved."""
        if not self.side_by_side:
            return self._long
        inverse = self.N**3 / (2 * self.rates.factor)
        return inverse if splitting.inverted(self.K, self.N) else inverse / 3

    # a factor of many features, in float32 and in blocks: two thirds as fast as a product
    @property
    def _long(self) -> float:
        return self.N**3 / 2 / self.rates.float32

    @property
    def side_by_side(self) -> bool:
        """Whether systems are made side by side."""
        return splitting.at_once(self.K, self.N)

    @property
    def levels(self) -> float:
        """Levels of splitting until rows have settled."""
        return len(splitting.LEVELS) * (1.0 if self.side_by_side else CLIMBED)

    def made(self, again: bool) -> float:
        """Say how many levels' systems are made for a choice of supports.

        Args:
            again: Whether there was one before; of the longest rows, what was kept is not made.

        Returns:
            The number.
        """
        known = splitting.kept(self.N) if again and not self.side_by_side else 0
        return max(self.levels - known, 0.0)

    def split(self, again: bool = False) -> float:
        """Price one choice of supports by splitting.

        Args:
            again: Whether there was one before.

        Returns:
            Seconds.
        """
        side = self._side(self.K / splitting.tile(self.K))
        systems = self.made(again) * self.system / self._side(2)
        return self.groups * (self.levels * self.steps / side + systems)

    def _removed(self, features: float, left: float) -> float:
        removals = max(features - left, 0.0)
        cubes = features**3 - left**3
        products = 2 / 3 * cubes / self.rates.float64
        copied = 4.0 * cubes / (3 * LAZY)
        columns = (LAZY / 2 + 24) * removals * (features + left) / 2
        calls = CALLS * ceil(removals / LAZY) * self.rates.call
        return calls + products + self._moved(copied + columns) / NEAR

    @property
    def tile(self) -> float:
        """Seconds of one exact elimination of some rows."""
        return self.side * self._removed(self.N, self.kept / 4)

    @property
    def side(self) -> int:
        """Rows of a piece of an exact elimination."""
        return min(self.K, of_rows.tile(self.N, self.least))

    @property
    def at_once(self) -> int:
        """Rows of a piece that have their H at once."""
        return 1 if self.least == 1 else self.side

    @property
    def inverse(self) -> float:
        """Seconds of the inverse of a Gram."""
        return self.N**3 / self.rates.factor

    @property
    def eliminated(self) -> float:
        """Seconds of one exact elimination of all rows."""
        tiles = -(-self.K // self.side)
        return self.groups * (tiles * self.tile / self._side(tiles) + self.inverse)

    @property
    def candidates(self) -> float:
        """Features of a row that is priced among some."""
        return min(SPARE * self.kept, self.N)

    @property
    def priced(self) -> int:
        """Rows of a group that are priced exactly among candidates."""
        return len(range(0, self.K, -(-self.K // PRICED)))

    @property
    def together(self) -> int:
        """Rows that are priced in one piece."""
        return min(self.priced, of_rows.tile(round(self.candidates)))

    @property
    def price(self) -> float:
        """Seconds of exact prices of some rows among candidates."""
        count = self.candidates
        each = count**3 / self.rates.factor + self._moved(2 * count**2)
        return self.together * (self._removed(count, self.kept / 4) + each)

    @property
    def among(self) -> float:
        """Seconds of exact prices among candidates."""
        tiles = self.priced / self.together
        return self.groups * tiles * self.price / self._side(ceil(tiles))

    @property
    def units(self) -> float:
        """Seconds of one exact elimination of the units that it reads."""
        inverse = self.N**3 / self.rates.factor
        return self.groups * (inverse + 8.0 * self.N**3 / self.rates.float64)

    @property
    def whole(self) -> float:
        """Seconds of least squares over all features."""
        return self.groups * (self.N**3 / (3 * self.rates.factor) + self.product)

    @property
    def regressed(self) -> float:
        """Seconds of the reduced-rank regressions of all ranks."""
        short, long = sorted((self.K, self.N))
        whole = self.N**3 / (3 * self.rates.factor)
        triangular = 4.0 * self.K * self.N**2 / self.rates.float64
        singular = SINGULAR * long * short**2 / self.rates.factor
        return self.groups * (whole + triangular + singular + CALLS * self.rates.call)

    @property
    def nuclear(self) -> float:
        """Seconds of the path of the nuclear norm to a rank, for the rows of a full A."""
        products = 8.0 * self.K**3 / self.rates.float64
        singular = SINGULAR * self.K**3 / self.rates.factor
        return self.whole + LEVELED * (products + singular + CALLS * self.rates.call)

    @property
    def within(self) -> float:
        """Seconds of the best weights of its row space, in the ball."""
        products = 8.0 * self.K**3 / self.rates.float64
        return self.whole + REFITTED * (products + CALLS * self.rates.call)

    def support(self, part: float) -> float:
        """Count the features of a row that is refitted.

        Args:
            part: Weights of a row, as a part of its share.

        Returns:
            Their number, the bias among them.
        """
        return min(part * self.kept, self.N) + 1

    def factorised(self, part: float) -> float:
        """Price the factors of a group's rows, each on its own support.

        Args:
            part: Weights of a row, as a part of its share.

        Returns:
            Seconds.
        """
        s = self.support(part)
        one = s**3 / (3 * self.rates.factor) + self._moved(4 * s**2) + CALLS * self.rates.call
        return self.K * one / self._side(self.K)

    @property
    def product(self) -> float:
        """Seconds of the product of a group's weights and its Gram."""
        return 2.0 * self.K * self.N**2 / self.rates.float64

    def refit(self, part: float) -> float:
        """Price a refit of the rows, each on its own.

        Args:
            part: Weights of a row, as a part of its share.

        Returns:
            Seconds.
        """
        return self.groups * (self.factorised(part) + self.product)

    def factors(self, part: float) -> float:
        """Say how large the factors of all rows are.

        Args:
            part: Weights of a row, as a part of its share.

        Returns:
            Bytes.
        """
        return 8.0 * self.K * min(part * self.kept, self.N) ** 2

    def coupled(self, part: float) -> float:
        """Price a refit of the rows together.

        Args:
            part: Weights of a row, as a part of its share.

        Returns:
            Seconds.
        """
        return self.groups * (self.factorised(part) + self.in_turn(part) + self.product)

    def in_turn(self, part: float) -> float:
        """Price the steps of a group's rows in view of all others: one block after the other.

        Args:
            part: Weights of a row, as a part of its share.

        Returns:
            Seconds.
        """
        s, K, N = self.support(part), self.K, self.N
        products = 2.0 * K * N * (K + N) / self.rates.float64
        moved = self._moved(K * s**2 + 10.0 * K * N)
        times = coupled.SWEEPS if self.factors(part) <= coupled.KEPT else 1
        return times * (products + moved + CALLS * K * self.rates.call)

    @property
    def solved(self) -> float:
        """Seconds of the certified solve of a group's rows, what they share apart."""
        each = EACH if self.wide else PRODUCTS
        return 2.0 * each * self.K * self.N**2 / self.rates.float64

    @property
    def wide(self) -> bool:
        """Whether the certified solve begins with working sets."""
        return self.N - 1 >= DEFAULTS.large

    @property
    def solved_together(self) -> int:
        """Rows of the certified solve that go together."""
        return unit_scale.WIDE if self.wide else DEFAULTS.tile

    @property
    def prepared(self) -> float:
        """Seconds of the inverses, and of the stages, of a certified solve."""
        shared = self._long if self.wide else INVERSES * self.inverse
        return shared + STAGES * self.rates.call

    @property
    def certificate(self) -> float:
        """Seconds of the certified solve."""
        tiles = -(-self.K // self.solved_together)
        return self.groups * (self.solved / self._side(tiles) + self.prepared)

    def swept(self, part: float, outputs: int, behind: float) -> float:
        """Price a sweep over the rows, their Grams apart.

        Args:
            part: Part of the weights that are there.
            outputs: Derivatives of each sample.
            behind: Seconds of a pass of all samples through the layers behind this one.

        Returns:
            Seconds.
        """
        s = part * (self.N - 1) + 1
        numbers = self.m * self.positions * (READ * s + FELT * (outputs + 1))
        moved = self._moved(numbers, self.item)
        blocks = -(-self.K // sweeps.TOGETHER)
        followed = FOLLOWED * blocks * (outputs + 4) * behind
        side = self._shared
        divided = self.groups * (self.K * moved + followed) / side
        return divided + self.swept_alone(part)

    def swept_alone(self, part: float) -> float:
        """Price what of a sweep is not divided over the samples: each row's own system.

        Args:
            part: Part of the weights that are there.

        Returns:
            Seconds.
        """
        s = part * (self.N - 1) + 1
        one = s**3 / self.rates.factor + self._removed(s, s / 2) + 10 * CALLS * self.rates.call
        return self.groups * self.K * one

    def weighted(self, part: float, outputs: int) -> float:
        """Price the Grams of all rows on their supports.

        Args:
            part: Part of the weights that are there.
            outputs: Derivatives of each sample.

        Returns:
            Seconds.
        """
        s = part * (self.N - 1) + 1
        copies = 1 if self.positions == 1 else outputs
        each = s * (s + 1) / 2 + (self.positions > 1) * self.positions * s
        products = 2.0 * self.m * copies * each
        numbers = self.m * self.positions * s
        one = self._product(products) + self._moved(4.0 * numbers, self.item)
        side = self._shared
        return self.groups * self.K * one / side

    @property
    def gram(self) -> float:
        """Bytes of its moments."""
        return 8.0 * self.groups * (self.N**2 + 2 * self.K * self.N)

    @property
    def reading(self) -> float:
        """Bytes of the blocks of features on their way."""
        flight = min(2 * self.workers, -(-self.m // self.samples)) + 1.0
        sums = self.item * (self.N**2 + self.K * self.N)
        return self.groups * flight * (self.block + sums)

    @property
    def planned(self) -> float:
        """Bytes while prices are found."""
        screened = screened_first(self.K, self.N)
        count = min(SPARE * self.kept, self.N) if screened else self.N
        rows = min(self.workers * self.at_once, self.priced if screened else self.K)
        return 8.0 * (3 * rows * count**2 + 3 * self.N**2)

    @property
    def matched(self) -> float:
        """Bytes while it is matched."""
        features = self.item * self.n * self.groups * (self.N + 2.0 * self.K)
        features = features if features <= KEPT else 0.0
        factors = min(self.factors(CHOICES[0]), float(coupled.KEPT))
        inverses = 4.0 * (2 * self.workers + 2) * self.N**2
        solved = 8.0 * (4 * self.N**2 + 12 * self.K * self.N)
        found = max(factors, inverses) + solved
        return 2 * self.gram + features + max(self.reading, found)

    @property
    def features(self) -> float:
        """Numbers in all of its features."""
        return float(self.groups * self.m * self.positions * self.N)

    @property
    def felt(self) -> float:
        """Numbers in the slopes of a block of rows, for one output."""
        return float(min(self.K, sweeps.TOGETHER) * self.m * self.positions)
