"""Several sparsities, each an ordinary run on the same explicit networks; one table of them all."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from simplicit.errors import InputError
from simplicit.lab import plots
from simplicit.lab.config.config import Config
from simplicit.lab.report import report
from simplicit.lab.results import read
from simplicit.lab.run.run import run
from simplicit.system import files

Row = dict[str, Any]


def compare(settings: Sequence[Config], folder: Path) -> list[Row]:
    """Run every configuration, and write their results as one table, one figure, one page.

    A comparison that was stopped is taken up where it was; one that is finished can be given more
    sparsities.

    Args:
        settings: Configurations that differ in `implicit.sparsity` only, as `config.load_each`
            reads them.
        folder: Where to. It gets one run folder per sparsity, e.g. `sparsity-0.9`.

    Returns:
        The rows of all runs; `target` is the sparsity that was asked for. The explicit networks,
        the same for all, are in there once, without one.

    Raises:
        InputError: If a sparsity is missing, or the folder holds something else.
    """
    wanted = [s.implicit.sparsity for s in settings]
    if None in wanted:
        raise InputError("implicit.sparsity: accepted is a number to compare at, or a list of them")
    if folder.exists() and (not folder.is_dir() or (folder / "explicit.safetensors").exists()):
        raise InputError(f"{folder} exists and holds something else: give another folder as --out")
    rows: list[Row] = []
    parts = [folder / f"sparsity-{sparsity}" for sparsity in wanted]
    for part, one in zip(parts, settings, strict=True):
        if part != parts[0]:
            lend_networks(parts[0], part, one)
        made = run(one, part)
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


def lend_networks(source: Path, part: Path, settings: Config) -> None:
    """Begin a run with the explicit networks of another: it finds them, and trains none.

    Args:
        source: The other run's folder.
        part: The new run's; if it exists, nothing is done.
        settings: The new run's configuration; its explicit networks are the other's.
    """
    if part.exists():
        return
    files.write_text(part / "config.yaml", settings.to_yaml())
    for path in source.rglob("explicit.safetensors"):
        place = part / path.relative_to(source)
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
    """
    rows = read.metrics(folder) if folder.is_dir() else []
    targets = dict.fromkeys(row["target"] for row in rows if "target" in row)
    return [folder / f"sparsity-{target}" for target in targets] or [folder]
