"""Several sparsities, each an ordinary run on the same explicit networks; one table of them all."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from simplicit.errors import InputError
from simplicit.lab import plots
from simplicit.lab.config import config
from simplicit.lab.config.config import Config
from simplicit.lab.report import report
from simplicit.lab.results import read
from simplicit.lab.run import origin
from simplicit.lab.run.run import folder_of, models_of, run
from simplicit.lab.run.standing import WEIGHTS
from simplicit.system import files, lock
from simplicit.workers.executors import Asked

Row = dict[str, Any]


def compare(settings: Sequence[Config], folder: Path, executor: Asked = None) -> list[Row]:
    """Run every configuration, and write their results as one table, one figure, one page.

    A comparison that was stopped is taken up where it was; one that is finished can be given more
    sparsities.

    Args:
        settings: Configurations that differ in `implicit.sparsity` only, as `config.load_each`
            reads them.
        folder: Where to. It gets one run folder per sparsity, e.g. `sparsity-0.9`.
        executor: Who takes the work in place of those that the configurations name: see `fit`.

    Returns:
        The rows of all runs; `target` is the sparsity that was asked for. The explicit networks,
        the same for all, are in there once, without one.

    Raises:
        InputError: If a sparsity is missing, or the folder holds something else.
    """
    wanted = [s.implicit.sparsity for s in settings]
    if None in wanted:
        raise InputError("implicit.sparsity: accepted is a number to compare at, or a list of them")
    with lock.held(folder):
        _require_free(settings, folder)
        files.clear(folder, everywhere=False)
        return _compare(settings, folder, executor)


def _compare(settings: Sequence[Config], folder: Path, executor: Asked) -> list[Row]:
    rows: list[Row] = []
    parts = [folder / f"sparsity-{one.implicit.sparsity}" for one in settings]
    for part, one in zip(parts, settings, strict=True):
        if part != parts[0]:
            lend_networks(parts[0], part, one)
        made = run(one, part, executor)
        others = [row for row in made if row["model"] != "explicit"]
        rows += [row for row in made if row["model"] == "explicit" and part == parts[0]]
        rows += [row | {"target": one.implicit.sparsity} for row in others]
        # after every run: what a comparison has so far can be looked at
        files.write_csv(folder / "metrics.csv", rows)
        files.write_json(folder / "metrics.json", rows)
        files.write_text(folder / "config.yaml", _together(settings))
        plots.draw_all(folder, plots.COMPARED)
        report.write_comparison(folder)
    return rows


# A comparison may grow by sparsities; all else is that of its configuration, and of its runs.
def _require_free(settings: Sequence[Config], folder: Path) -> None:
    parts = [path for path in folder.glob("sparsity-*") if path.is_dir()]
    if origin.others(folder) and not parts:
        raise InputError(f"{folder} exists and holds something else: give another folder as --out")
    asked = {f"sparsity-{one.implicit.sparsity}": one for one in settings}
    for part in parts:
        if (part / "config.yaml").exists():
            implicit = settings[0].implicit.model_copy(
                update={"sparsity": config.load_kept(part).implicit.sparsity}
            )
            alike = settings[0].model_copy(update={"implicit": implicit})
            origin.require_free(part, asked.get(part.name, alike))
    if not all(_finished(one, folder) for one in settings):
        for part in parts:
            origin.require_version(part, origin.version(), "is of a comparison that was")


def _finished(settings: Config, folder: Path) -> bool:
    part = folder / f"sparsity-{settings.implicit.sparsity}"
    try:
        made = {(row["model"], row.get("seed")) for row in read.metrics(part)}
    except InputError:
        return False
    return all((model, seed) in made for model in models_of(settings) for seed in settings.seeds)


def lend_networks(source: Path, part: Path, settings: Config) -> None:
    """Begin a run with the explicit networks of another: it finds them, and trains none.

    Args:
        source: The other run's folder.
        part: The new run's; where it has a network, or models of its own, nothing is done.
        settings: The new run's configuration; its explicit networks are the other's.
    """
    if (part / "metrics.json").exists():
        return
    with lock.held(part):
        for seed in settings.seeds:
            path = folder_of(settings, source, seed) / WEIGHTS
            place = folder_of(settings, part, seed) / WEIGHTS
            if path.exists() and not place.exists():
                # first, so that the folder never holds what nobody can name
                if not (part / "config.yaml").exists():
                    files.write_text(part / "config.yaml", settings.to_yaml())
                with files.replace_with(place) as file:
                    shutil.copyfile(path, file)


def _together(settings: Sequence[Config]) -> str:
    tree = settings[0].model_dump(mode="json")
    tree["implicit"]["sparsity"] = [s.implicit.sparsity for s in settings]
    return OmegaConf.to_yaml(OmegaConf.create(tree))


def runs(folder: Path) -> list[Path]:
    """List the runs of a comparison, or the run itself.

    Args:
        folder: A run folder, or one that `compare` has written.

    Returns:
        Run folders, in the order of `metrics.json`.

    Raises:
        InputError: If there is no such folder, or no results in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; accepted is one that `run` has written")
    rows = read.metrics(folder)
    targets = dict.fromkeys(row["target"] for row in rows if "target" in row)
    return [folder / f"sparsity-{target}" for target in targets] or [folder]
