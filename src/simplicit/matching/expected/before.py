"""What is said before any work: how long it takes and how much memory, a warning, or a refusal."""

import torch

from simplicit.calibration.batches import Batches
from simplicit.errors import InputError
from simplicit.matching.expected.estimate import Estimate, Work, largest
from simplicit.system import memory, progress, rates, threads
from simplicit.system.memory import GB

QUICK = 10.0
"""Seconds at nominal rates up to which the machine is not timed: that would take longer than it
tells."""

WORTH_SAYING = 10.0
"""Seconds from which on a line says how long it takes."""

LONG = 600.0
"""Seconds from which on a line says what takes so long, and what would help."""

TRUST = 2.0
"""What an estimate may be wrong by: a limit that its half exceeds is refused."""

TIMED = 0.02
"""Seconds of the pass through the network that is timed, at nominal rates."""


def estimated(work: Work, stream: Batches, limit: float | None = None) -> Estimate:
    """Say what there is to expect; where that is long, or tight, by the rates of this machine.

    Args:
        work: What there is to do.
        stream: Calibration inputs.
        limit: Seconds that there are.

    Returns:
        The estimate.
    """
    nominal = work.estimate(stream.m, rates.NOMINAL)
    if nominal.seconds <= QUICK and (limit is None or nominal.seconds <= limit / TRUST**2):
        return nominal
    return timed(work, stream.example, stream.m)


def timed(work: Work, example: torch.Tensor, m: int) -> Estimate:
    """Say what there is to expect by the rates of this machine.

    Args:
        work: What there is to do.
        example: Some samples.
        m: How many there are.

    Returns:
        The estimate.
    """
    return work.estimate(m, *machine(work, example))


def machine(work: Work, example: torch.Tensor) -> tuple[rates.Rates, float]:
    """Time this machine.

    Args:
        work: What there is to do.
        example: Some samples.

    Returns:
        Its rates, and the seconds of a pass of one sample through the network.
    """
    network = work.network
    device = network.like.device
    count = int(TIMED / max(work.forward(rates.NOMINAL), 1e-9))
    u = example[: max(1, min(count, len(example), 64))].to(network.like)
    with torch.no_grad(), threads.single_threaded():
        one = rates.seconds(lambda: network.replay(u)[1], 3) / len(u)
    return rates.measured(work.workers, str(device)), one


def require_memory(work: Work, expected: Estimate, m: int) -> None:
    """Refuse what does not fit into memory.

    Args:
        work: What there is to do.
        expected: What it takes.
        m: Samples.

    Raises:
        InputError: If it does not fit, with the figures and the largest number that does.
    """
    device = work.network.like.device
    if device.type == "cpu":
        free = memory.available()
    elif device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        return
    if expected.peak <= free:
        return
    task = max(expected.memory, key=lambda name: expected.memory[name])
    fit = largest(work, rates.NOMINAL, m, free)
    accepted = f"accepted are at most {fit:,} of them" if fit else "not even one would fit; skip="
    raise InputError(
        f"{m:,} calibration inputs: about {expected.peak / GB:.1f} GB are needed for {task}, and "
        f"{free / GB:.1f} GB are free on {device}; {accepted}"
        + ("" if fit else " leaves layers out")
    )


def tell(expected: Estimate) -> None:
    """Say how long it takes and how much memory, where that is worth a line.

    Args:
        expected: What is expected.
    """
    if expected.seconds < WORTH_SAYING:
        return
    progress.say(f"expected: about {spoken(expected.seconds)}, {expected.peak / GB:.1f} GB")
    if expected.seconds >= LONG:
        most = ", ".join(
            f"{layer.name} ({spoken(layer.seconds)})" for layer in expected.longest[:3]
        )
        progress.say(
            f"most of it goes to {most}; skip= leaves layers as they are, fewer inputs take less, "
            "time_limit= bounds the call"
        )


def require_time(expected: Estimate, limit: float | None) -> None:
    """Refuse a limit that cannot be met whatever is left out.

    Args:
        expected: What is expected.
        limit: Seconds that there are.

    Raises:
        InputError: If the least that can be done takes longer, even if the estimate is twice that.
    """
    if limit is not None and expected.least > TRUST * limit:
        raise InputError(
            f"time_limit={limit:g}: the least that can be done takes about "
            f"{spoken(expected.least)}; accepted is that or more, or fewer inputs, or skip= for "
            "some layers"
        )


def spoken(seconds: float) -> str:
    """Write a time as it is spoken.

    Args:
        seconds: The time.

    Returns:
        Seconds, minutes or hours.
    """
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
