"""The loop over layers: each is matched on the states of the model so far, first layer first."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simplicit.calibration.ball import RowConstraint
from simplicit.calibration.batches import Batches
from simplicit.calibration.frontier import Frontier
from simplicit.calibration.rows import Rows, follow, rows_of, shared
from simplicit.calibration.skipped import skipped
from simplicit.calibration.structure import Structure, structured
from simplicit.convex.gram import Gram
from simplicit.equations.equation import Equation
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.matching.checkpoint import Checkpoint, Stages
from simplicit.matching.expected.before import estimated, require_memory, require_time
from simplicit.matching.expected.estimate import LAYERS, Estimate, Work
from simplicit.matching.layer import Layer
from simplicit.matching.plan import (
    Plan,
    Posed,
    later_moments,
    plan_layers,
    pose,
)
from simplicit.matching.records import (
    Ledger,
    Row,
    channel_records,
    trace_records,
)
from simplicit.matching.schedule import FEWEST, SWEPT, Schedule
from simplicit.matching.stored import plan_of, plan_records, with_numbers
from simplicit.matching.ways.low_rank import Parts, plan_ranks
from simplicit.matching.ways.low_rank_full import is_full, plan_full
from simplicit.matching.ways.patterns import spending
from simplicit.matching.ways.units import Budget, unit_records, whole_shares
from simplicit.model.archive import sealed
from simplicit.model.equilibrium import implicit_solve
from simplicit.model.factored import Factors, factored
from simplicit.outputs.sensitivity import sensitivity
from simplicit.outputs.sweeps.sweeps import INACTIVE
from simplicit.recipe import Recipe
from simplicit.solvers import Progress
from simplicit.sparsity.budget import first_budget
from simplicit.sparsity.pattern import UNSTRUCTURED
from simplicit.system import progress
from simplicit.system.deadline import Deadline
from simplicit.units.found import Units, units_of
from simplicit.units.narrow import Narrow, narrow
from simplicit.workers.workers import Workers


class Matching:
    """The model while it is built: equations like the teacher's, one after another.

    Args:
        network: The teacher as captured.
        structure: Which entries of A may be used.
        stream: Calibration inputs.
        recipe: What to solve.
        workers: Parallel blocks of rows.
        executor: Takes batches and rows side by side.
        checkpoint: Folder that keeps finished layers, and finished pieces of the next.
        seed: Of the directions in which the outputs are probed, and of noise.
        deadline: How long all may take.

    Attributes:
        model: The equations matched so far.
        ledger: The records.
        units: Those of the network, where whole units go.
        factors: Of the layers that are written by factors, by their number among `layers`. In
            `model` these are multiplied out.
        stages: What is kept on disk, and the time that each phase has taken.
    """

    def __init__(
        self,
        network: StateEquations,
        structure: Structure,
        stream: Batches,
        recipe: Recipe,
        workers: int,
        executor: Workers,
        checkpoint: Path | None,
        seed: int = 0,
        deadline: Deadline | None = None,
    ) -> None:
        self.network, self.stream = network, stream
        self.workers, self.executor, self.seed = workers, executor, seed
        self.inactive = INACTIVE if recipe.relu_aware else 1.0
        self.teacher = self.equations = structured(network, structure)
        self.skipped = skipped(self.equations, recipe.skip)
        # weights that go back into the network's own class have biases where it has some
        own = structure == "layered"
        self.layers = rows_of(self.equations, self.skipped, recipe.bias, own)
        self.every = self.equations.layers
        self.recipe, self.budget, self.patterns = spending(
            network, recipe, self.layers, self.every, self.skipped
        )
        recipe = self.recipe
        self.units = units_of(self.equations, self.skipped) if recipe.units else None
        self.narrow: Narrow | None = None
        self.model: list[Equation] = []
        self.planned: Plan | None = None
        self.ledger = Ledger(self.layers, self.skipped)
        self.factors: dict[int, Factors] = {}
        self.sweeps = recipe.passes(not network.structured, structure)
        self.swept, self.solving = False, 0.0
        self.constraint = None
        if structure == "full" or recipe.constraint == "row":
            self.constraint = RowConstraint(network, recipe.constraint, recipe.kappa)
        self.balls = [
            self.constraint and self.constraint.ball(rows, self.equations, int(rows.biased))
            for rows in self.layers
        ]
        self.later: list[list[Gram]] = [[] for _ in self.layers]
        deadline = deadline or Deadline()
        problem = {} if checkpoint is None else self._problem(structure, deadline.limit)
        self.checkpoint = Checkpoint(checkpoint, problem)
        self.stages = Stages(self.checkpoint, executor, deadline)
        self.ledger.count("network", self.every)
        self.schedule = Schedule(deadline)

    # what tells this matching from others
    def _problem(self, structure: Structure, limit: float | None) -> dict[str, Any]:
        some = torch.zeros_like(self.stream.example[:1])
        if not any(own.dtype for own in self.stream.inputs):  # whole numbers stay 0
            some = torch.linspace(-1, 1, some.numel()).to(some).view_as(some)
        with torch.no_grad():
            # of the operations between the weights; their rounding depends on the machine
            first = self.network.replay(some)[1]
        weights = [t.weight for e in self.network.layers for t in e.terms]
        biases = [e.bias for e in self.network.layers if e.bias is not None]
        return {
            "network": (sealed.digest(*weights, *biases), f"{float(first.double().norm()):.6e}"),
            "recipe": (self.recipe, structure),
            "calibration set": sealed.digest_together(self.stream),
            "seed": self.seed,
            # what is left out depends on it
            "time limit": limit,
        }

    def expect(self, priced: int = 0) -> Estimate:
        """Say what all of it is going to take; refuse it, or leave the sweeps out, if need be.

        Args:
            priced: Sweeps in which a level of robustness is looked for.

        Returns:
            What is expected.

        Raises:
            InputError: If memory or the time limit are too small for it.
        """
        limit, m = self.schedule.deadline.limit, self.stream.m
        if limit is not None and self.budget is not None and not self.recipe.chooses:
            raise InputError(
                f"time_limit={limit:g}: the path to a penalty that meets a sparsity cannot be cut "
                "short; accepted without a sparsity, or where supports are chosen"
            )
        if self.units is not None:
            self._unit_budget(self.units).require()
        work = Work(
            self.network, self.equations, self.layers, self.recipe, self.sweeps, self.budget,
            self.workers, priced,
        )  # fmt: skip
        expected = estimated(work, self.stream, limit)
        require_memory(work, expected, m)
        require_time(expected, limit)
        # Sweeps take their supports from layers that keep more: either there is time for the
        # fewest that reach the budget, or the layers are matched at the budget.
        if saved := self.checkpoint.restore("plan"):
            enough = saved[1].get("sweeps", self.sweeps) == self.sweeps
        else:
            enough = expected.least + sum(expected.swept[:FEWEST]) <= self.schedule.left
        if self.sweeps and not enough:
            self._no_sweeps()
            expected = estimated(replace(work, sweeps=0), self.stream, limit)
        self.schedule.begin(expected)
        return expected

    def _no_sweeps(self) -> None:
        self.schedule.note(SWEPT)
        self.sweeps = 0

    def plan(self) -> None:
        """Under a budget, or for a rank, find each row's share on the teacher's states."""
        planned = self.recipe.budgeted or self.recipe.rank is not None
        saved = self.stages.restore("plan", "level") if planned else None
        if saved and self.units is not None:
            self._without(self.units, torch.tensor(saved[1]["stay"], dtype=torch.bool))
        else:
            self._find_later()
        if not planned:
            return
        if saved:
            self.planned = plan_of(saved, self.layers)
        else:
            with self.stages.under_way("plan", "level") as begin:
                self._make_plan(begin)
        assert self.planned is not None
        counts = [sum(share.weights for share in shares) for shares in self.planned.shares]
        self.ledger.note("plan", counts)

    def _make_plan(self, begin: float) -> None:
        found, budget = None, self.budget
        if self.recipe.sensitivity and self.recipe.chooses:
            found = sensitivity(
                self.network, self.equations, self.layers, self.stream, self.seed, self.executor
            )
        # sweeps remove no weight that equations share
        if self.sweeps and not any(shared(rows, self.every) for rows in self.layers):
            assert budget is not None
            budget = first_budget(budget, self.network.nonzeros)
        posed = pose(
            self.equations,
            self.layers,
            self._frontier(own=False),
            self.recipe,
            found,
            self.balls,
            self.executor,
            self.later,
        )
        if self.units is not None:
            self.planned = self._fewer_units(self.units, posed)
        else:
            self.planned = self._spend(budget, posed)
        if self.sweeps and self.budget is not None and not self.schedule.sweepable():
            self._no_sweeps()
            self.planned = self.planned.cut(self.budget)
        flat, records = plan_records(self.planned)
        records |= {"sweeps": self.sweeps, "seconds": time.monotonic() - begin}
        records["stay"] = [] if self.narrow is None else self.narrow.stay.tolist()
        self.checkpoint.keep("plan", flat, records)

    def _unit_budget(self, units: Units) -> Budget:
        given = self.network, self.equations, self.layers, units, self.skipped, self.recipe
        return Budget(*given, self.stream.example)

    def _fewer_units(self, units: Units, posed: Posed) -> Plan:
        before, stay = self.layers, self._unit_budget(units).spend(posed)
        fewer = self._without(units, stay)
        return whole_shares(before, self.layers, fewer, posed)

    # goes on with the network less some of its units
    def _without(self, units: Units, stay: Tensor) -> Narrow:
        self.narrow = narrow(self.equations, units, stay)
        self.equations = self.narrow.equations
        self.every = self.equations.layers
        self.layers = rows_of(self.equations, self.skipped, self.recipe.bias, own=True)
        self.ledger.layers = self.layers
        self.budget = sum(rows.weights(self.every[rows.index]).numel() for rows in self.layers)
        self._find_later()
        return self.narrow

    @property
    def unit_records(self) -> list[Row]:
        """Channels and multiply-adds of each layer, where whole units have gone."""
        return [] if self.narrow is None else unit_records(self.teacher, self.equations)

    def _find_later(self) -> None:
        if any(rows.uses for rows in self.layers):
            frontier = self._frontier(own=False)
            self.later = later_moments(self.equations, self.layers, frontier, self.executor)

    def _spend(self, budget: int | None, posed: Posed) -> Plan:
        given = self.equations, self.layers, self.recipe
        if is_full(self.recipe, self.equations):
            return plan_full(*given, posed)
        if self.recipe.rank is not None:
            return plan_ranks(*given, budget, posed, self.executor)
        assert budget is not None
        return plan_layers(*given, budget, posed, self.executor, self.patterns)

    def solve(self) -> None:
        """Match every layer, the first first, each on the states of the model so far.

        Without a closed loop all read the teacher's states.
        """
        if self.sweeps and (saved := self.stages.restore("sweeps", "sweeps")):
            self._take_up(*saved)
            return
        begin, before = time.monotonic(), self.stages.earlier["solve"]
        frontier = self._frontier(self.recipe.closed_loop)
        with progress.task(LAYERS, total=len(self.layers)) as step:
            for index in range(len(self.every)):
                equation = self._template(index, self.model)
                for k, rows in enumerate(self.layers):
                    if rows.index == index:
                        equation = self._layer(k, rows, equation, frontier)
                        self.schedule.matched(k)
                        step(1, rows.name)
                self.model.append(equation)
                if index < len(self.equations.hidden):
                    frontier.advance(equation)
        self.solving = time.monotonic() - begin + self.stages.earlier["solve"] - before
        self.ledger.count("match", self.model, self.factors)

    # goes on behind the sweeps: no layer is matched again
    def _take_up(self, numbers: Tensor, records: dict[str, Any]) -> None:
        empty: list[Equation] = []
        for index in range(len(self.every)):
            equation = self._template(index, empty)
            for rows in self.layers:
                if rows.index == index:
                    W = torch.zeros_like(rows.weights(equation))
                    equation = rows.put(equation, W, W[..., 0])
            empty.append(equation)
        self.model = with_numbers(empty, numbers[:, 0], records["biased"])
        self.ledger.rows, self.ledger.trace = records["rows"], records["trace"]
        self.ledger.budgets += records["budgets"]
        self.stages.spent("solve", records["solving"])
        self.schedule.matched(len(self.layers) - 1)
        self.swept = True

    # an equation before its own rows are matched
    def _template(self, index: int, earlier: Sequence[Equation]) -> Equation:
        left = [t for i, t in self.skipped if i == index]
        equation = follow(self.every[index], earlier, left)
        return equation if self.recipe.bias or left else equation.unbiased

    def _frontier(self, own: bool) -> Frontier:
        folder = self.checkpoint.folder
        left = self.narrow and (self.narrow.rows, self.narrow.states)
        given = self.teacher, self.stream, own, _settle, self.executor, folder
        return Frontier(*given, left)

    @property
    def patterned(self) -> bool:
        """Whether weights that are zero have their places in a pattern."""
        return any(pattern is not UNSTRUCTURED for pattern in self.patterns)

    @property
    def matched(self) -> StateEquations:
        """The model's equations, when all layers are matched."""
        found = replace(self.equations, hidden=tuple(self.model[:-1]), output=self.model[-1])
        return factored(found, [*self.factors.values()])

    def take(self, equations: StateEquations, stage: str) -> None:
        """Take over a model that a later stage has made, and count its weights.

        Args:
            equations: The model.
            stage: The stage.
        """
        self.model = list(equations.layers)
        self.ledger.count(stage, self.model, self.factors)
        self.ledger.recount(self.model)

    @property
    def left(self) -> list[Tensor]:
        """The model's weights that stay as they are."""
        return [self.model[i].terms[t].weight for i, t in self.skipped]

    def _layer(self, k: int, rows: Rows, equation: Equation, frontier: Frontier) -> Equation:
        if saved := self.stages.restore(f"layer-{k}", "solve"):
            self.ledger.rows += saved[1]["rows"]
            self.ledger.trace += saved[1]["trace"]
            if self.ledger.trace:  # what follows is later, whatever else took time before the stop
                last = self.ledger.trace[-1]["seconds"]
                self.stages.start = min(self.stages.start, time.monotonic() - last)
            found = saved[0].unflatten(0, (rows.groups, -1))
            if factors := self.checkpoint.restore(f"factors-{k}"):
                groups, K, N = found.shape
                flat = factors[0].to(self.equations.like)
                shape, rank = (groups, K, N - 1), factors[1]["rank"]
                self.factors[k] = Factors.of_flat(rows.index, rows.slots, shape, rank, flat)
            return rows.put(equation, found[..., :-1], found[..., -1])
        with self.stages.under_way(f"layer-{k}", "solve") as begin:
            return self._match(k, rows, equation, frontier, begin)

    def _match(
        self, k: int, rows: Rows, equation: Equation, frontier: Frontier, begin: float
    ) -> Equation:
        events: list[tuple[float, Progress]] = []

        def look(event: Progress) -> None:
            events.append((time.monotonic() - self.stages.start, event))

        chooses = self.planned is not None and self.recipe.chooses
        hurried = chooses and not self.sweeps and self.schedule.hurried(k)
        layer = Layer(
            k, rows, equation, self.equations, self.recipe, self.planned, self._missing(k),
            self.balls[k], self.later[k], self.patterns[k], bool(self.sweeps), hurried,
            partial(self.schedule.certificate, k), self.executor,
        )  # fmt: skip
        matched = layer.match(frontier, look)
        records, found = matched.records, matched.candidate
        if matched.parts and matched.parts[0].left.shape[1]:
            records = self._factored(k, rows, matched.parts, records)
        if any(row["status"] == "time_limit" for row in records):
            self.schedule.short("certificates")
        trace = list(trace_records(rows.name, events))
        self.ledger.rows += records
        self.ledger.trace += trace
        both = torch.cat([found.W, found.shift[..., None]], 2).flatten(0, 1)
        saved_records = {"rows": records, "trace": trace, "seconds": time.monotonic() - begin}
        self.checkpoint.keep(f"layer-{k}", both, saved_records)
        return rows.put(equation, found.W, found.shift)

    # as they are in the model, in its precision
    def _factored(
        self, k: int, rows: Rows, parts: Sequence[Parts], records: list[Row]
    ) -> list[Row]:
        like, d = self.equations.like, parts[0].right.shape[1]
        every = (
            [p.left for p in parts],
            [p.right for p in parts],
            [p.sparse[:, :d] for p in parts],
        )
        own = Factors(rows.index, rows.slots, *(torch.stack(part).to(like) for part in every))
        self.factors[k] = own
        self.checkpoint.keep(f"factors-{k}", own.flat, {"rank": own.rank})
        by_row, by_channel = own.nonzeros
        for row, count in zip(records, by_row, strict=True):
            row["nonzeros"] = count
        return [*records, *channel_records(rows.name, len(records), by_channel)]

    # weights for which balls of earlier layers had no room
    def _missing(self, k: int) -> int:
        missing = 0
        if self.planned is None or self.constraint is None or self.balls[k] is not None:
            return missing
        for rows, shares in zip(self.layers[:k], self.planned.shares, strict=False):
            weights = rows.weights(self.model[rows.index]).count_nonzero()
            missing += sum(share.weights for share in shares) - int(weights)
        return missing


# the states of an equation that reads itself
def _settle(equation: Equation, u: Tensor) -> Tensor:
    A, B = (term.weight for term in equation.terms)
    c = u @ B.T if equation.full_bias is None else u @ B.T + equation.full_bias
    found = implicit_solve(A, c, equation.phi)
    found.require_converged()
    return found.states.detach()
