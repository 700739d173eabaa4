"""One configuration, one run folder: train, match, evaluate, draw, report."""

import platform
import shutil
import sys
import time
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simplicit import __version__
from simplicit.data import datasets as data
from simplicit.errors import InputError
from simplicit.fit import check_device
from simplicit.lab import plots
from simplicit.lab.config import config
from simplicit.lab.config.config import Config
from simplicit.lab.report import report
from simplicit.lab.results import read
from simplicit.lab.run.seed import SeedRun
from simplicit.system import files, progress, threads

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


def run(settings: Config, folder: Path) -> list[Row]:
    """Do everything a configuration asks for; take up a run that was stopped.

    Anything that is wrong with the folder, the data, the network or the settings is an
    `InputError`, and nothing is written then.

    Args:
        settings: The configuration.
        folder: The run folder. One that holds the same configuration is taken up where it was
            left.

    Returns:
        The rows of `metrics.json`.
    """
    check_device(settings.device)
    _check_folder(folder, settings)
    dataset = data.load(settings.evaluation.dataset, settings.data_dir)
    parts = [
        SeedRun(settings, dataset, seed, folder / f"seed-{seed}" if index else folder)
        for index, seed in enumerate(settings.seeds)
    ]
    for part in parts:
        part.build()  # what does not fit is told before anything is written
    if not (folder / "config.yaml").exists():
        parts[0].read()
        files.write_text(folder / "config.yaml", settings.to_yaml())
    if not (folder / "environment.json").exists():
        files.write_json(folder / "environment.json", environment())
    rows = read.metrics(folder) if (folder / "metrics.json").exists() else []
    models: list[str] = list(settings.evaluation.baselines)
    if settings.implicit.finetune and "implicit" in models:
        models.insert(models.index("implicit") + 1, "finetuned")
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
            files.write_csv(folder / "metrics.csv", rows)
            files.write_json(folder / "metrics.json", rows)
        shutil.rmtree(part.checkpoint, ignore_errors=True)
    with progress.task("drawing plots, writing the report", total=2) as step:
        plots.draw_all(folder)
        step(1)
        report.write_report(folder)
        step(1)
    return rows


# accepts a folder that is new, empty, or holds the same configuration
def _check_folder(folder: Path, settings: Config) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give another folder as --out")
    if folder.is_dir() and any(folder.iterdir()):
        known = config.load_kept(folder) if (folder / "config.yaml").exists() else None
        if known is None or _without_evaluate(known) != _without_evaluate(settings):
            raise InputError(
                f"{folder} exists and holds something else: give another folder as --out, or the "
                "same configuration to take a stopped run up"
            )
    elif settings.implicit.evaluate:
        raise InputError(
            f"implicit.evaluate: {folder} holds no saved model; give the folder of a finished run "
            "as --out"
        )


def _without_evaluate(settings: Config) -> Config:
    implicit = settings.implicit.model_copy(update={"evaluate": False})
    return settings.model_copy(update={"implicit": implicit})


def environment() -> Row:
    """Describe what a run ran on, without naming the machine.

    Returns:
        Versions, platform, processors, threads, command line.
    """
    return {
        "simplicit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "processors": threads.available(),
        "threads": torch.get_num_threads(),
        "command": " ".join(Path(part).name if i == 0 else part for i, part in enumerate(sys.argv)),
    }


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
