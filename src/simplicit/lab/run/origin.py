"""What a run folder was made of. What differs from it is named before anything is done."""

import json
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simplicit import __version__
from simplicit.data.datasets import Dataset
from simplicit.errors import InputError
from simplicit.lab.config import config
from simplicit.lab.config.config import Config
from simplicit.lab.results import read
from simplicit.model.archive import sealed
from simplicit.system import files, lock, progress, threads

Row = dict[str, Any]

FREE = {
    "implicit.evaluate": "what is done with the folder",
    "implicit.workers": "how many do it",
    "implicit.executor": "who does it",
    "explicit.log_interval": "how often it is shown",
    "data_dir": "where the data lie; whether they are the same is seen from themselves",
}
"""Keys that may differ when a run is taken up, and what they say: no result depends on them."""

LIBRARIES = ("python", "torch", "numpy")
"""What may round otherwise in another version."""

TOLD, DIGITS = 6, 16
"""Most differences that are told one by one; digits of a digest that are kept."""


def require_free(folder: Path, settings: Config) -> bool:
    """Accept a folder that is new, empty, or holds the same configuration.

    Args:
        folder: The run folder.
        settings: The configuration.

    Returns:
        Whether it holds the configuration.

    Raises:
        InputError: If it holds something else; or nothing, where its models are asked for.
    """
    if (folder / "config.yaml").exists():
        known = config.load_kept(folder)
        if said := differences(_values(known), _values(settings)):
            raise InputError(
                f"{folder} exists and holds another configuration: {said}; give another folder as "
                "--out, or the same configuration to take a stopped run up"
            )
        return True
    if others(folder):
        raise InputError(
            f"{folder} exists and holds something else: give another folder as --out, or the "
            "same configuration to take a stopped run up"
        )
    if settings.implicit.evaluate:
        raise InputError(
            f"implicit.evaluate: {folder} holds no saved model; give the folder of a finished run "
            "as --out"
        )
    return False


def others(folder: Path) -> list[Path]:
    """List what is in a folder, but for what a process leaves that was killed at once.

    Args:
        folder: Any folder, or none.

    Returns:
        Its files and folders.
    """
    found = folder.iterdir() if folder.is_dir() else iter(())
    return [p for p in found if p.name != lock.NAME and not p.name.endswith(files.TEMPORARY)]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Say which values differ.

    Args:
        there: Values by name, as they were.
        here: As they are asked for.

    Returns:
        Names and values; empty if none differs.
    """
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    parts = [f"{n} is {_short(there.get(n))} there, {_short(here.get(n))} here" for n in names]
    more = len(parts) - TOLD
    return "; ".join([*parts[:TOLD], *([f"and {more} more"] if more > 0 else [])])


def _short(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _values(settings: Config) -> dict[str, Any]:
    return {k: v for k, v in _flat("", settings.model_dump(mode="json")) if k not in FREE}


def _flat(prefix: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def environment(dataset: Dataset) -> Row:
    """Describe what a run is made of and ran on, without naming the machine.

    Args:
        dataset: Its data.

    Returns:
        Versions, digests of the code and the data, platform, processors, threads, command line.
    """
    return {
        **version(),
        "data": fingerprint(dataset),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "processors": threads.available(),
        "threads": torch.get_num_threads(),
        "command": " ".join(Path(part).name if i == 0 else part for i, part in enumerate(sys.argv)),
    }


def fingerprint(dataset: Dataset) -> str:
    """Tell data from others of the same name.

    Args:
        dataset: The data.

    Returns:
        A digest of all images, labels and names of classes.
    """
    parts = (dataset.train_inputs, dataset.train_labels, dataset.test_inputs, dataset.test_labels)
    return sealed.digest(*parts, dataset.classes)[:DIGITS]


def known(folder: Path) -> Row | None:
    """Read what a folder says of itself.

    Args:
        folder: A run folder.

    Returns:
        Its `environment.json`, empty if there is none, None if it is damaged.
    """
    path = folder / "environment.json"
    try:
        found = read.from_json(path) if path.exists() else {}
    except InputError:
        return None
    return found if isinstance(found, dict) else None


def require_same(folder: Path, now: Row, finished: bool) -> None:
    """Refuse to mix results of other data or of another version.

    Args:
        folder: A run folder.
        now: The environment that there is now.
        finished: Whether nothing is left to make.

    Raises:
        InputError: If the data differ, or, with something left to make, the code.
    """
    before = known(folder) or {}
    if before.get("data", now["data"]) != now["data"]:
        raise InputError(
            f"{folder} was begun with other data: their digest is {before['data']} there, "
            f"{now['data']} here; give another folder as --out, or the data as they were"
        )
    if not finished:
        require_version(folder, now, "is not finished, and was")
    same = {name: before.get(name, now[name]) for name in LIBRARIES}
    if not finished and (said := differences(same, {name: now[name] for name in LIBRARIES})):
        progress.say(f"note: {said}: what is made now may be rounded otherwise")


def require_version(folder: Path, now: Row, what: str = "was") -> None:
    """Refuse to go on with what another version has begun.

    Args:
        folder: A run folder.
        now: The environment that there is now.
        what: Says which folder that is, in front of `begun`.

    Raises:
        InputError: If the code differs.
    """
    before = known(folder) or {}
    if before.get("code", now["code"]) != now["code"]:
        raise InputError(
            f"{folder} {what} begun with another version of simplicit: {_version(before)} there, "
            f"{_version(now)} here; give another folder as --out, or go on with that version"
        )


def version() -> Row:
    """Tell this version of the package from others.

    Returns:
        Its number, and a digest of its code.
    """
    return {"simplicit": __version__, "code": sealed.code()[:DIGITS]}


def note_network(folder: Path, seed: int, network: str) -> None:
    """Write down which explicit network the models of a seed are made of.

    Args:
        folder: A run folder.
        seed: The seed.
        network: Digest of its weights.
    """
    before = known(folder) or {}
    networks = before.get("networks", {})
    if networks.get(str(seed)) != network:
        now = {**before, "networks": {**networks, str(seed): network}}
        files.write_json(folder / "environment.json", now)


def _version(row: Row) -> str:
    return f"{row.get('simplicit')} (code {row['code']})"
