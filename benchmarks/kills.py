"""Kill a comparison again and again, take it up, and compare what it made with one left alone.

    python benchmarks/kills.py --kills 20
    python benchmarks/kills.py --kills 10 --mode convolutions
    python benchmarks/kills.py --config configs/digits.yaml --overrides implicit.sparsity=[0.5]

Each kill is SIGKILL to the whole process group, at a moment drawn evenly over the time that an
uninterrupted run takes. The same command is started again until it ends; a run that ends before its
kill is compared, and a new folder is begun. Printed are the kills, results that were lost or differ
to the bit, and the seconds of work beyond the uninterrupted run, for each kill, start-up apart.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "inference_seconds", "peak_memory", "milliseconds", "times_faster", "way")
TIMES += ("pays_from",)
"""Columns that depend on the clock or the machine."""

BOTH = ("implicit.sparsity=[0.6,0.8]", "evaluation.speed=false")
MODES = {
    "matrices": (
        "configs/digits.yaml",
        *BOTH,
        "seeds=[0,1]",
        "evaluation.baselines=[explicit,implicit,obs,gmp]",
        "implicit.finetune=3",
    ),
    "convolutions": (
        "configs/fashion-mnist-lenet.yaml",
        *BOTH,
        "evaluation.baselines=[explicit,implicit,gmp]",
        "explicit.training_size=0.1",
        "explicit.epoch=2",
        "evaluation.epoch=2",
        "implicit.training_size=0.004",
        "implicit.sweeps=4",
        "evaluation.bs=500",
    ),
}
"""A configuration and what makes it take a minute at most, with every kind of work in it."""

START = ("-c", "import simplicit.lab.run.compare")
"""What every process does before it works."""


def start(command: list[str], log: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(log.parent / "src")}
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, cwd=ROOT, start_new_session=True
        )


def finish(process: subprocess.Popen, seconds: float | None) -> bool:
    """Wait; kill the group if it takes longer. Whether it was killed."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def results(folder: Path) -> dict[str, str]:
    """Every model by its SHA-256, every row of the metrics less its times, and tables."""
    found = {}
    for path in sorted(folder.rglob("model.safetensors")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = digest
    for path in sorted(folder.rglob("metrics.json")):
        for row in json.loads(path.read_text()):
            where = f"{path.relative_to(folder)} {row['model']} {row['seed']} {row.get('target')}"
            kept = {k: v for k, v in row.items() if not k.startswith(TIMES)}
            assert where not in found, where
            found[where] = json.dumps(kept, sort_keys=True)
    for name in ("rows.csv", "layers.csv", "budget.csv"):
        for path in sorted(folder.rglob(name)):
            found[str(path.relative_to(folder))] = "".join(sorted(path.read_text().splitlines()))
    return found


def left(folder: Path) -> list[str]:
    """What no finished run leaves."""
    ends = (".tmp", ".lock", ".damaged")
    return [str(p) for p in folder.rglob("*") if p.name.endswith(ends) or p.name == "checkpoint"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--mode", choices=MODES, default="matrices")
    parser.add_argument("--config", help="another configuration than that of the mode")
    parser.add_argument("--overrides", nargs="*", default=[], help="further keys=values")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the runs; a temporary one by default")
    given = parser.parse_args()
    place = given.keep or Path(tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    # a run is not taken up by code that was edited meanwhile
    shutil.copytree(ROOT / "src", place / "src", ignore=shutil.ignore_patterns("__pycache__"))
    log, draw = place / "log.txt", random.Random(given.seed)
    what = [given.config] if given.config else [*MODES[given.mode]]
    command = [sys.executable, "-m", "simplicit", "compare", *what, *given.overrides]

    begin = time.monotonic()
    finish(start([sys.executable, *START], log), None)
    startup = time.monotonic() - begin
    begin = time.monotonic()
    alone = start([*command, "--out", str(place / "alone")], log)
    finish(alone, None)
    whole = time.monotonic() - begin
    if alone.returncode:
        raise SystemExit(f"the run left alone failed: {log.read_text()[-2000:]}")
    wanted = results(place / "alone")
    print(f"left alone: {whole:.1f} s, start-up {startup:.1f} s, {len(wanted)} results", flush=True)

    kills, runs, lost, other, repeated = 0, 0, [], [], []
    while kills < given.kills:
        runs, spent, own = runs + 1, 0.0, 0
        folder = place / f"killed-{runs}"
        while True:
            # the last run may end
            after = draw.uniform(0, whole) if kills < given.kills else None
            begin = time.monotonic()
            process = start([*command, "--out", str(folder)], log)
            killed = finish(process, after)
            spent += time.monotonic() - begin
            if not killed:
                break
            kills, own = kills + 1, own + 1
        if process.returncode:
            print(f"run {runs} FAILED with {process.returncode}: {log.read_text()[-1500:]}")
            raise SystemExit(1)
        found = results(folder)
        lost += [f"{runs}: {name}" for name in wanted if name not in found]
        other += [f"{runs}: {k}" for k in found if k in wanted and found[k] != wanted[k]]
        other += [f"{runs}: {k} is too much" for k in found if k not in wanted] + left(folder)
        if own:
            repeated.append((spent - whole - own * startup) / own)
        print(f"run {runs}: {own} kills, {spent:.1f} s, repeated {repeated[-1:]}", flush=True)
        if not (lost or other or given.keep):
            shutil.rmtree(folder)
    print(f"kills: {kills}, runs: {runs}, lost: {len(lost)}, different: {len(other)}")
    mean = sum(repeated) / max(len(repeated), 1)
    print(f"work repeated a kill: mean {mean:.1f} s, most {max(repeated, default=0.0):.1f} s")
    for name in lost + other:
        print("  ", name)
    if not (lost or other or given.keep):
        shutil.rmtree(place)
    raise SystemExit(bool(lost or other))


if __name__ == "__main__":
    main()
