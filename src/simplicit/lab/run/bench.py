"""`simplicit bench`: the time of a sample, measured again on this machine from a run's models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simplicit.data import datasets as data
from simplicit.errors import InputError
from simplicit.lab import plots
from simplicit.lab.config import config
from simplicit.lab.evaluate import speed
from simplicit.lab.report import report
from simplicit.lab.results import read
from simplicit.lab.run.seed import SeedRun
from simplicit.model.saved import load
from simplicit.system import files, lock, threads

Row = dict[str, Any]


def bench(
    folder: Path,
    *,
    batches: Sequence[int] = speed.BATCHES,
    counts: Sequence[int] | None = None,
    compiler: bool = False,
) -> list[Row]:
    """Time the explicit network and the implicit model of a run, and write that into its report.

    Args:
        folder: A finished run folder; of several seeds, the first is timed.
        batches: Samples a call.
        counts: Threads; by default one, and all processors.
        compiler: Whether `torch.compile` is tried, too.

    Returns:
        The rows of `speed.csv` for the implicit model.

    Raises:
        InputError: If the folder has no implicit model, or there are fewer processors.
    """
    most = threads.available()
    if any(count > most for count in counts or ()):
        raise InputError(f"threads: accepted are 1 to {most}, the processors there are")
    read.metrics(folder)  # a folder of something else is left as it is
    with lock.held(folder):
        return _bench(folder, batches, counts, compiler)


def _bench(
    folder: Path, batches: Sequence[int], counts: Sequence[int] | None, compiler: bool
) -> list[Row]:
    settings = config.load_kept(folder)
    metrics = read.metrics(folder)
    if not any(row["model"] == "implicit" for row in metrics):
        raise InputError(f"{folder}/metrics.json: no implicit model is recorded, nothing to time")
    dataset = data.load(settings.evaluation.dataset, settings.data_dir)
    first = SeedRun(settings, dataset, settings.seeds[0], folder)
    net, model = first.build(), load(folder)
    inputs = first.dataset.test_inputs[: max(batches)]
    rows = speed.measure(
        "implicit", net, model, inputs, batches=batches, threads=counts, compiler=compiler
    )
    path = folder / "speed.csv"
    before = read.table(path, ["model"]) if path.exists() else []
    kept = [row for row in before if row["model"] != "implicit"]
    files.write_csv(path, [*kept, *({"seed": first.seed, **row} for row in rows)])
    found = speed.summed_up(rows, net, model, inputs)
    for row in metrics:
        if found and row["model"] == "implicit" and row.get("seed") == first.seed:
            row.pop("pays_from", None)
            row |= found
    files.write_csv(folder / "metrics.csv", metrics)
    files.write_json(folder / "metrics.json", metrics)
    plots.draw_all(folder)
    report.write_report(folder)
    return rows
