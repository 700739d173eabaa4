"""One configuration, one run folder: train, match, evaluate, draw, report."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from simplicit.data import datasets as data
from simplicit.fit import check_device
from simplicit.lab import plots
from simplicit.lab.config.config import Config
from simplicit.lab.report import report
from simplicit.lab.results import read
from simplicit.lab.run import origin
from simplicit.lab.run.seed import SeedRun
from simplicit.lab.run.standing import Standing, standing
from simplicit.system import files, lock, progress, threads
from simplicit.workers.executors import Asked

Row = dict[str, Any]


def default_folder(name: str) -> Path:
    """Name the folder of a run that is not told where to go.

    Args:
        name: Of the run, e.g. that of its configuration file.

    Returns:
        `runs/<name>-<time>`, with a number behind it where that is there already: after two starts
        in one second, or a clock that was set back.
    """
    first = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    others = (first.with_name(f"{first.name}-{k}") for k in count(2))
    return next(path for path in chain([first], others) if not path.exists())


def run(settings: Config, folder: Path, executor: Asked = None) -> list[Row]:
    """Do everything a configuration asks for; take up a run that was stopped.

    Anything that is wrong with the folder, the data, the network or the settings is an
    `InputError`, and nothing is written then.

    Args:
        settings: The configuration.
        folder: The run folder. One that holds the same configuration is taken up where it was
            left; one in which another process is at work is refused.
        executor: Who takes the work in place of those that the configuration names: see `fit`.

    Returns:
        The rows of `metrics.json`.
    """
    check_device(settings.device)
    with lock.held(folder):
        return _run(settings, folder, executor)


def models_of(settings: Config) -> list[str]:
    """List the models that a run makes.

    Args:
        settings: The configuration.

    Returns:
        Their names, in order.
    """
    models: list[str] = list(settings.evaluation.baselines)
    if settings.implicit.finetune and "implicit" in models:
        models.insert(models.index("implicit") + 1, "finetuned")
    return models


def folder_of(settings: Config, folder: Path, seed: int) -> Path:
    """Say where the models of a seed are.

    Args:
        settings: The configuration.
        folder: The run folder.
        seed: One of its seeds.

    Returns:
        The folder.
    """
    return folder if seed == settings.seeds[0] else folder / f"seed-{seed}"


def _run(settings: Config, folder: Path, executor: Asked) -> list[Row]:
    begun = origin.require_free(folder, settings)
    dataset = data.load(settings.evaluation.dataset, settings.data_dir)
    parts = [
        SeedRun(settings, dataset, seed, folder_of(settings, folder, seed), executor)
        for seed in settings.seeds
    ]
    now, models, rows = origin.environment(dataset), models_of(settings), []
    stands = None
    if begun:
        stands = standing(folder, [(part.seed, part.folder) for part in parts])
        rows = stands.rows
        made = {(row["model"], row["seed"]) for row in rows}
        finished = all((model, part.seed) in made for model in models for part in parts)
        origin.require_same(folder, now, finished or settings.implicit.evaluate)
        files.clear(folder)
        stands.mend()
    for part in parts:
        part.build()  # what does not fit is told before anything is written
    if not begun:
        parts[0].read()
        files.write_text(folder / "config.yaml", settings.to_yaml())
    if not (folder / "environment.json").exists():
        files.write_json(folder / "environment.json", now)
    if stands is not None:
        rows = _with_networks(parts, stands, (origin.known(folder) or {}).get("networks", {}))
        if (folder / "metrics.json").exists() and rows != read.metrics(folder):
            _write(folder, rows)
    for part in parts:
        for model in models:
            found = [r for r in rows if r["model"] == model and r.get("seed") == part.seed]
            if found and not (model == "implicit" and settings.implicit.evaluate):
                continue
            old = found[0] if found else {}
            match model:
                case "explicit":
                    new = part.explicit_row()
                case "implicit":
                    new = part.implicit_row(old)
                case "finetuned":
                    new = part.finetuned_row()
                case _:
                    new = part.baseline_row(model)
            rows = [new if row is old else row for row in rows] + ([] if found else [new])
            # the metrics last: a row there says that all of its model is on disk
            part.write_tables(folder)
            origin.note_network(folder, part.seed, part.network)
            _write(folder, _in_order(rows, settings, models))
            part.forget(model)
        shutil.rmtree(part.checkpoint, ignore_errors=True)
    rows = _in_order(rows, settings, models)
    with progress.task("drawing plots, writing the report", total=2) as step:
        plots.draw_all(folder)
        step(1)
        report.write_report(folder)
        step(1)
    return rows


def _write(folder: Path, rows: Sequence[Row]) -> None:
    files.write_csv(folder / "metrics.csv", rows)
    files.write_json(folder / "metrics.json", rows)


# as if none had been made a second time
def _in_order(rows: Sequence[Row], settings: Config, models: Sequence[str]) -> list[Row]:
    return sorted(rows, key=lambda r: (settings.seeds.index(r["seed"]), models.index(r["model"])))


# Rows whose explicit network was damaged stand if it is made again bit by bit.
def _with_networks(
    parts: Sequence[SeedRun], stands: Standing, networks: Mapping[str, str]
) -> list[Row]:
    rows = stands.rows
    for part in parts:
        if part.seed in stands.networks and networks.get(str(part.seed)) != part.network:
            progress.say(
                f"the explicit network of seed {part.seed} is not known to have the bits of the "
                "one before: its models are made again"
            )
            rows = [row for row in rows if row["seed"] != part.seed]
            shutil.rmtree(part.checkpoint, ignore_errors=True)
    return rows


Advice = Callable[[str], None]


def advise(settings: Config, say: Advice) -> None:
    """Say in one line each what a configuration asks for and does not get.

    Args:
        settings: The configuration as read; it knows which keys its file has.
        say: Where to.
    """
    implicit, available = settings.implicit, threads.available()
    structure = "triangular" if implicit.structure == "auto" else implicit.structure
    if implicit.workers > available:
        say(f"note: workers: {implicit.workers} reduced to {available}, the processors there are")
    bounded = structure == "full" or implicit.constraint == "row"
    if "kappa" in implicit.model_fields_set and not bounded:
        say(
            f"note: kappa: {implicit.kappa} does nothing for structure {structure}, which is "
            "well-posed whatever the weights; it bounds structure full"
        )
    if implicit.finetune and "implicit" not in settings.evaluation.baselines:
        say("note: finetune: does nothing unless evaluation.baselines has implicit")
    unused = {"alpha", "lambda1", "sparsity_ratio"} & implicit.model_fields_set
    if implicit.sparsity is not None and unused:
        say(f"note: sparsity: {implicit.sparsity} overrides {' and '.join(sorted(unused))}")
