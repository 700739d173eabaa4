"""A plan as tables, sentences and JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from simplicit.lab.plan.plan import LITTLE, MB, Plan, Run
from simplicit.matching.expected.before import spoken
from simplicit.matching.expected.stage import Stage

REASONS = {
    "alone": "the caller's own part",
    "repeated": "what every worker makes for itself",
    "uneven": "the longest piece",
    "moved": "what is on its way",
}


def tables(found: Plan) -> list[Table]:
    """Write the phases as tables.

    Args:
        found: The plan.

    Returns:
        What there is to do and to move, and the seconds; a row per phase, and one of all.
    """
    return [_sizes(found), _times(found)]


def _sizes(found: Plan) -> Table:
    last = found.runs[-1]
    written = Table(title=f"{found.asked.samples:,} inputs; bytes with {last.workers} workers")
    for heading in ("phase", "longest piece"):
        written.add_column(heading)
    sizes = ("sent MB", "to each", "back MB", "caller MB", "worker MB")
    for heading in ("s", "10⁹ products", "pieces", *sizes):
        written.add_column(heading, justify="right")
    for name, phase in last.phases.items():
        own = [stage for stage in found.stages if stage.phase == name]
        pairs = [(stage, piece) for stage in own if (piece := stage.longest) is not None]
        stage, piece = max(pairs, key=lambda pair: pair[1].seconds, default=(None, None))
        named = stage and piece and " ".join((stage.layer or piece.layer, stage.step)).strip()
        moved = (phase.sent, phase.worker_sent, phase.returned, phase.caller, phase.worker)
        written.add_row(
            name, named or "–", f"{piece.seconds:.3g}" if piece else "–",
            *_counted(own), *(f"{size / MB:,.0f}" for size in moved),
        )  # fmt: skip
    every = last.phases.values()
    totals = [sum(p.sent for p in every), sum(p.worker_sent for p in every)]
    totals += [sum(p.returned for p in every)]
    totals += [max(p.caller for p in every), max(p.worker for p in every)]
    written.add_section()
    counted = _counted(found.stages)
    written.add_row("all", "", "", *counted, *(f"{size / MB:,.0f}" for size in totals))
    return written


def _counted(some: Sequence[Stage]) -> tuple[str, str]:
    products = sum(stage.products for stage in some)
    pieces = sum(stage.times * stage.count for stage in some)
    return f"{products / 1e9:,.1f}", f"{pieces:,.0f}"


def _times(found: Plan) -> Table:
    work, runs, one = found.asked.work, found.runs, found.one.seconds
    written = Table(title="seconds with so many workers")
    written.add_column("phase")
    counts = [f"{run.workers}" for run in runs]
    for heading in (f"{work.workers} here", *counts):
        written.add_column(heading, justify="right")
    for name in found.one.phases:
        seconds = [sum(found.here.phases[name]), *(run.phases[name].seconds for run in runs)]
        written.add_row(name, *map(_seconds, seconds))
    written.add_section()
    here = found.here.seconds
    written.add_row("all", *map(_seconds, [here, *(run.seconds for run in runs)]))
    parts = [one / here / work.workers, *(one / run.seconds / run.workers for run in runs)]
    written.add_row("efficiency", *(f"{100 * part:.3g} %" for part in parts))
    return written


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def notes(found: Plan) -> list[str]:
    """Say how far workers help, and what then decides.

    Args:
        found: The plan.

    Returns:
        Sentences.
    """
    alone, link = sum(stage.times * stage.alone for stage in found.stages), found.link
    return [
        _limit(found),
        f"The caller alone has {spoken(alone)} of {spoken(found.one.seconds)}; the link has "
        f"{link.bandwidth / MB:,.0f} MB/s each way and {link.latency:g} s of latency, and a piece "
        f"takes {1e6 * link.each:.0f} µs to hand over.",
    ]


def _limit(found: Plan) -> str:
    enough, best, own = found.enough, found.best, found.best.decides
    if own is None:
        return f"More than 1 worker gains less than {100 * LITTLE:.0f} %."
    piece = f", {spoken(own.longest)} a piece" if own.reason == "uneven" else ""
    few = f"{enough.workers} worker" + ("" if enough.workers == 1 else "s")
    return (
        f"More than {few} ({spoken(enough.seconds)}) gain less than {100 * LITTLE:.0f} %; "
        f"{best.workers} take least ({spoken(best.seconds)}). There {REASONS[own.reason]} decides "
        f"({spoken(own.every)}), most of all in {own.where} ({spoken(own.seconds)}{piece})."
    )


def summary(found: Plan) -> dict[str, Any]:
    """Sum up what a run takes.

    Args:
        found: The plan.

    Returns:
        All of it, for JSON.
    """
    one = found.one.seconds
    return {
        "samples": found.asked.samples,
        "link": asdict(found.link),
        "here": {
            "workers": found.asked.work.workers,
            "seconds": found.here.seconds,
            "memory": found.here.memory,
            "phases": {name: sum(parts) for name, parts in found.here.phases.items()},
        },
        "stages": [
            {**asdict(stage), "seconds": stage.seconds, "worker": stage.worker}
            for stage in found.stages
        ],
        "runs": [_summed_up(run, one) for run in found.runs],
        "enough": _summed_up(found.enough, one),
        "best": _summed_up(found.best, one),
    }


def _summed_up(run: Run, one: float) -> dict[str, Any]:
    return {
        "workers": run.workers,
        "seconds": run.seconds,
        "efficiency": one / run.workers / run.seconds,
        "phases": {name: asdict(phase) for name, phase in run.phases.items()},
        "decides": run.decides and asdict(run.decides),
    }
