"""One configuration, one run folder: train, match, evaluate, draw, report; and `verify`."""

import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from . import __version__, archive, config, data, explicit, files, plots, report, threads
from .capture import capture
from .config import Config
from .errors import InputError
from .fit import fit
from .model import ImplicitModel
from .plots import read
from .recipe import Recipe

Row = dict[str, Any]

CURVE_STEPS = 60
"""Most steps of the equilibrium's residual curve."""


def run(settings: Config, name: str, out: Path | None = None) -> Path:
    """Do everything a configuration asks for; take up a run that was stopped.

    Args:
        settings: The configuration.
        name: Of the run, for the folder's default name.
        out: The run folder; `runs/<name>-<time>` when omitted. One that holds the same
            configuration is taken up where it was left.

    Returns:
        The run folder.

    Raises:
        InputError: If the folder holds something else, or anything about data, network or
            settings is wrong.
    """
    folder = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    _check_device(settings.device)
    _claim(folder, settings)
    dataset = data.load(settings.evaluation.dataset, settings.data_dir)
    rows = _read_rows(folder)
    for index, seed in enumerate(settings.seeds):
        part = _SeedRun(settings, dataset, seed, folder if index == 0 else folder / f"seed-{seed}")
        for model in settings.evaluation.baselines:
            if any(row["model"] == model and row["seed"] == seed for row in rows):
                if not (model == "implicit" and settings.implicit.evaluate):
                    continue
            old = [row for row in rows if row["model"] == model and row["seed"] == seed]
            new = part.explicit_row() if model == "explicit" else part.implicit_row(old)
            rows = [row for row in rows if row not in old] + [new]
            files.write_json(folder / "metrics.json", rows)
            files.write_csv(folder / "metrics.csv", rows)
            for table in ("rows", "trace", "convergence"):
                part.collect(folder, table)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    plots.draw_all(folder)
    report.write_report(folder)
    return folder


def verify(folder: Path) -> list[Row]:
    """Recompute sparsity, well-posedness and test accuracy from the saved models alone.

    Args:
        folder: A finished run folder.

    Returns:
        One row per number: model, seed, quantity, recorded, recomputed, same.

    Raises:
        InputError: If the folder holds no results.
    """
    settings = config.load(folder / "config.yaml")
    recorded = [row for row in _read_rows(folder) if row["model"] == "implicit"]
    if not recorded:
        raise InputError(f"{folder}/metrics.json: no implicit model is recorded, nothing to verify")
    dataset = data.load(settings.evaluation.dataset, settings.data_dir)
    rows = []
    for row in recorded:
        first = row["seed"] == settings.seeds[0]
        model = archive.load(folder if first else folder / f"seed-{row['seed']}")
        found = _accuracy(model, dataset, settings.evaluation.bs)
        certificate = model.certificate
        quantities = {
            "nonzeros": model.nonzeros,
            "sparsity": model.sparsity,
            "test_accuracy": found,
            "certificate_norm": certificate.norm,
            "well_posed": certificate.well_posed,
        }
        # another number of threads may round one sample across a decision boundary
        slack = {"test_accuracy": 2.5 / len(dataset.test_labels), "certificate_norm": 1e-12}
        for name, value in quantities.items():
            same = abs(value - row[name]) <= slack.get(name, 0.0)
            record = {"model": "implicit", "seed": row["seed"], "quantity": name}
            rows.append({**record, "recorded": row[name], "recomputed": value, "same": same})
    return rows


class _SeedRun:
    """The models of one seed and where they are kept."""

    def __init__(self, settings: Config, dataset: data.Dataset, seed: int, folder: Path) -> None:
        self.settings, self.dataset, self.seed, self.folder = settings, dataset, seed, folder
        self.tables: dict[str, list[Row]] = {}
        self._net: tuple[nn.Module, float] | None = None

    def net(self) -> tuple[nn.Module, float]:
        """The explicit network and the seconds its training took: loaded where it is saved."""
        if self._net is None:
            self._net = self._load_or_train()
        return self._net

    def _load_or_train(self) -> tuple[nn.Module, float]:
        wanted, dataset = self.settings.explicit, self.dataset
        net = explicit.build(
            wanted.type,
            wanted.architecture,
            bias=wanted.bias,
            arguments=wanted.arguments,
            seed=self.seed,
        )
        explicit.check(net, dataset.train_inputs, len(dataset.classes))
        saved = self.folder / "explicit.safetensors"
        if saved.exists():
            explicit.load_weights(net, saved)
            with safe_open(saved, "pt") as file:
                return net, float((file.metadata() or {}).get("seconds", "nan"))
        begin = time.monotonic()
        if wanted.weights is not None:
            explicit.load_weights(net, wanted.weights)
        else:
            chosen = data.sample(len(dataset.train_labels), wanted.training_size, self.seed)
            explicit.train(
                net,
                dataset.train_inputs[chosen],
                dataset.train_labels[chosen],
                optimizer=wanted.optimizer,
                lr=wanted.lr,
                epochs=wanted.epoch,
                batch_size=self.settings.evaluation.bs,
                seed=self.seed,
                device=self.settings.device,
                log_interval=wanted.log_interval,
            )
        seconds = time.monotonic() - begin
        weights = {k: v.detach().cpu().contiguous().clone() for k, v in net.state_dict().items()}
        with files.replace_with(saved) as temporary:
            save_file(weights, temporary, {"seconds": str(seconds)})
        return net, seconds

    def explicit_row(self) -> Row:
        net, seconds = self.net()
        equations = capture(net, self.dataset.train_inputs[:2])
        size = sum(p.numel() for p in net.parameters() if p.ndim > 1)
        row = self._row("explicit", net, seconds)
        row |= {"nonzeros": equations.nonzeros, "parameters": size}
        row |= {"sparsity": 0.0, "bytes": (self.folder / "explicit.safetensors").stat().st_size}
        return row

    def implicit_row(self, old: list[Row]) -> Row:
        model, seconds, phases = self._load_or_fit(old)
        certificate = model.certificate
        found = [model.equilibrium(u) for u in self._test_batches()]
        residual = torch.cat([e.residual for e in found])
        wanted = self.settings.implicit
        self.tables["convergence"] = self._curve(model)
        row = self._row("implicit", model, seconds)
        row |= {"nonzeros": model.nonzeros, "parameters": model.parameters_count}
        row |= {"sparsity": model.sparsity, "structure": model.structure}
        row |= {"objective": wanted.objective, "kappa": wanted.kappa}
        row |= {"well_posed": certificate.well_posed, "certificate_norm": certificate.norm}
        row |= {"certificate_method": certificate.method}
        row |= {"converged": float(torch.cat([e.converged for e in found]).double().mean())}
        row |= {"max_residual": float(residual.max()), "max_steps": _max_steps(found)}
        row |= {"bytes": (self.folder / archive.NUMBERS).stat().st_size}
        row |= {"peak_memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
        return row | {f"seconds_{name}": value for name, value in phases.items()}

    def _load_or_fit(self, old: list[Row]) -> tuple[ImplicitModel, float, dict[str, float]]:
        wanted = self.settings.implicit
        if wanted.evaluate:
            phases = {k[8:]: v for row in old for k, v in row.items() if k.startswith("seconds_")}
            return archive.load(self.folder), old[0]["seconds"] if old else float("nan"), phases
        net, _ = self.net()
        chosen = data.sample(len(self.dataset.train_labels), wanted.training_size, self.seed)
        recipe = Recipe(
            **{f.name: getattr(wanted, f.name) for f in fields(Recipe) if hasattr(wanted, f.name)}
        )
        begin = time.monotonic()
        result = fit(
            net,
            self.dataset.train_inputs[chosen],
            recipe,
            batch_size=self.settings.evaluation.bs,
            workers=wanted.workers,
            device=self.settings.device,
            checkpoint=self.folder / "checkpoint",
        )
        seconds = time.monotonic() - begin
        result.model.save(self.folder)
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
        self.tables |= {"rows": result.rows, "trace": result.trace}
        return result.model, seconds, result.seconds

    def _row(self, name: str, net: nn.Module, seconds: float) -> Row:
        batch = self.settings.evaluation.bs
        begin = time.monotonic()
        accuracy = _accuracy(net, self.dataset, batch)
        return {
            "model": name,
            "dataset": self.dataset.name,
            "seed": self.seed,
            "test_accuracy": accuracy,
            "seconds": seconds,
            "inference_seconds": time.monotonic() - begin,
        }

    def _test_batches(self) -> tuple[Tensor, ...]:
        return self.dataset.test_inputs.to(self.settings.device).split(2000)

    def _curve(self, model: ImplicitModel) -> list[Row]:
        """Residual against step of Picard's iteration on the first test images."""
        u = self._test_batches()[0]
        with torch.no_grad():
            found = model.equilibrium(u, method="picard", max_steps=CURVE_STEPS, history=True)
        assert found.history is not None
        history = _carried_forward(found.history.cpu().double())
        return [
            {
                "model": "implicit",
                "step": step + 1,
                "residual_median": float(residuals.median()),
                "residual_max": float(residuals.max()),
            }
            for step, residuals in enumerate(history)
        ]

    def collect(self, folder: Path, table: str) -> None:
        """Write this seed's records into the run's table, the other seeds' kept."""
        mine = [{"seed": self.seed, **row} for row in self.tables.pop(table, [])]
        if not mine:
            return
        path = folder / f"{table}.csv"
        others = read.table(path, ["seed"]) if path.exists() else []
        kept = [row for row in others if row["seed"] != str(self.seed)]
        files.write_csv(path, [*kept, *mine])


def _carried_forward(history: Float[Tensor, "k m"]) -> Float[Tensor, "k m"]:
    """Give samples that have converged their last residual at the later steps."""
    filled = [history[0]]
    for residuals in history[1:]:
        filled.append(torch.where(residuals.isnan(), filled[-1], residuals))
    return torch.stack(filled)


def _max_steps(found: list[Any]) -> int:
    return max(int(e.steps.max()) for e in found)


def _accuracy(net: nn.Module, dataset: data.Dataset, batch: int) -> float:
    return explicit.accuracy(net, dataset.test_inputs, dataset.test_labels, batch)


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"device {device!r} is not available here: cpu always is") from None


def _claim(folder: Path, settings: Config) -> None:
    """Make the run folder, or accept one that holds the same configuration."""
    saved = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give another folder as --out")
    if folder.is_dir() and any(folder.iterdir()):
        known = config.load(saved) if saved.exists() else None
        if known is None or _without_evaluate(known) != _without_evaluate(settings):
            raise InputError(
                f"{folder} exists and holds something else: give another folder as --out, or the "
                "same configuration to take a stopped run up"
            )
        return
    if settings.implicit.evaluate:
        raise InputError(
            f"implicit.evaluate: {folder} holds no saved model; give the folder of a finished run "
            "as --out"
        )
    files.write_text(saved, settings.to_yaml())
    files.write_json(folder / "environment.json", environment())


def _without_evaluate(settings: Config) -> Config:
    implicit = settings.implicit.model_copy(update={"evaluate": False})
    return settings.model_copy(update={"implicit": implicit})


def _read_rows(folder: Path) -> list[Row]:
    exists = (folder / "metrics.json").exists()
    return read.metrics(folder) if exists else []


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


def advise(settings: Config, given: Config, say: Advice) -> None:
    """Say in one line each what a configuration asks for and does not get.

    Args:
        settings: The configuration.
        given: The same, as read from the file: it knows which keys were set there.
        say: Where to.
    """
    implicit, available = settings.implicit, threads.available()
    structure = "triangular" if implicit.structure == "auto" else implicit.structure
    if implicit.workers > available:
        say(f"note: workers: {implicit.workers} reduced to {available}, the processors there are")
    if "kappa" in given.implicit.model_fields_set and structure != "full":
        say(
            f"note: kappa: {implicit.kappa} does nothing for structure {structure}, which is "
            "well-posed whatever the weights; it bounds structure full"
        )
    unused = {"alpha", "sparsity_ratio"} & given.implicit.model_fields_set
    if implicit.sparsity is not None and unused:
        say(f"note: sparsity: {implicit.sparsity} overrides {' and '.join(sorted(unused))}")
