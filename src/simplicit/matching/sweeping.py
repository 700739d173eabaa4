"""The sweeps on the outputs as a stage of the matching: what they start from, and what is kept."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simplicit.equations.equation import Equation
from simplicit.equations.forward import predict
from simplicit.matching.expected.estimate import SWEEPS
from simplicit.matching.layers import Matching
from simplicit.matching.stored import numbers_of, with_numbers
from simplicit.outputs.sweeps.kept import Kept
from simplicit.outputs.sweeps.sweeps import Sweeps
from simplicit.system import memory, progress

UNDER_WAY = "sweeping"
"""Name of what is kept between two sweeps."""


def sweep(matching: Matching) -> None:
    """Sweep over the rows until the outputs are matched at the budget.

    Args:
        matching: A matching whose layers are matched; it goes on with the model that is found.
    """
    if not matching.sweeps or matching.swept:
        return
    begin, checkpoint, stages = time.monotonic(), matching.checkpoint, matching.stages
    ledger, schedule = matching.ledger, matching.schedule
    joint, timer, before = _sweeps(matching), schedule.sweeps(), len(ledger.budgets)
    assert matching.budget is not None
    if saved := checkpoint.restore_all(UNDER_WAY):
        tensors, records = saved
        joint.read(Kept(*saved), with_numbers(joint.every, tensors["W"][:, 0], records["biased"]))
        ledger.budgets += records["budgets"]
        stages.spent("sweeps", records["seconds"])
    done = 0 if joint.place is None else joint.place.sweeps
    timer.laps, earlier = done, stages.earlier["sweeps"]

    def say(layers: Sequence[Equation]) -> dict[str, Any]:
        seconds = time.monotonic() - begin + earlier
        return {"biased": [e.bias is not None for e in layers], "seconds": seconds}

    def after(stage: str) -> None:
        ledger.count(stage, joint.every)
        timer.lap()
        if checkpoint.folder is not None and timer.laps < matching.sweeps:
            kept = joint.write()
            kept.records |= {"budgets": ledger.budgets[before:], **say(joint.every)}
            checkpoint.keep(
                UNDER_WAY, numbers_of(joint.every)[:, None], kept.records, **kept.tensors
            )

    with progress.task(SWEEPS, matching.sweeps * joint.count) as step:
        if done:
            step(done * joint.count)
        joint.match(matching.budget, matching.sweeps, step, after, timer.room)
    if timer.laps < matching.sweeps:
        missed = matching.sweeps - timer.laps
        schedule.note(f"{missed} of {matching.sweeps} sweeps on the outputs")
    matching.model = joint.every
    ledger.recount(matching.model)
    records = {"rows": ledger.rows, "trace": ledger.trace, "solving": matching.solving}
    records |= {"budgets": ledger.since("match"), **say(matching.model)}
    checkpoint.keep("sweeps", numbers_of(matching.model)[:, None], records)
    checkpoint.drop("layer-*", "factors-*", UNDER_WAY)


def _sweeps(matching: Matching) -> Sweeps:
    like = matching.equations.like
    states = sum(e.size + e.states for e in matching.every)
    features = max(
        rows.weights(matching.every[rows.index]).shape[2]
        * rows.positions(matching.every[rows.index])
        * rows.groups
        for rows in matching.layers
    )
    m = matching.stream.m
    needed = 2.0 * like.element_size() * m * (states + features)
    memory.require(needed, f"the states of {m} samples in sweeps", like.device)
    u, T = samples(matching)
    return Sweeps(
        matching.matched, matching.layers, u, T, matching.inactive, matching.workers,
        matching.seed, matching.patterns,
    )  # fmt: skip


def samples(matching: Matching) -> tuple[Tensor, Tensor]:
    """Collect the calibration inputs and the teacher's outputs on them.

    Args:
        matching: The matching.

    Returns:
        U (m, p) and Y (m, q).
    """
    like = matching.equations.like
    u = torch.cat([batch.to(like).flatten(1) for batch in matching.stream])
    with torch.no_grad():
        return u, predict(matching.network, u)
