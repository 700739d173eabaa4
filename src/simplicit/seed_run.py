"""The two models of one seed: trained, matched or loaded, then measured and kept."""

import math
import resource
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from . import archive, baselines, data, explicit, files, progress
from .capture import capture
from .config import Config
from .evaluate import robustness
from .finetune import finetune
from .fit import fit
from .model import ImplicitModel
from .plots import read
from .recipe import Recipe

Row = dict[str, Any]

CURVE_STEPS = 60
"""Most steps of the equilibrium's residual curve."""

STATES = 1 << 24
"""Most states of test images side by side: 64 MB a copy."""

MADE = ("seconds", "rows", "max_relative_gap")
"""How the columns begin that say how a model was made; `evaluate` keeps them."""


class SeedRun:
    """The models of one seed and where they are kept.

    Args:
        settings: The run's configuration.
        dataset: Its data.
        seed: Seed of the initial weights, of the order of training and of the samples chosen.
        folder: Where the models are.
    """

    def __init__(self, settings: Config, dataset: data.Dataset, seed: int, folder: Path) -> None:
        self.settings, self.dataset, self.seed, self.folder = settings, dataset, seed, folder
        self.checkpoint = folder / "checkpoint"
        self._weights = folder / "explicit.safetensors"
        self._tables: dict[str, list[Row]] = {}
        self._net: tuple[nn.Module, float] | None = None

    def build(self) -> nn.Module:
        """Build the explicit network, with the weights saved or configured, if any.

        The dataset gets the layout that the network takes.

        Returns:
            A network that takes the dataset's samples.
        """
        wanted = self.settings.explicit
        net = explicit.build(
            wanted.type,
            wanted.architecture,
            bias=wanted.bias,
            activation=wanted.activation,
            arguments=wanted.arguments,
            seed=self.seed,
        )
        self.dataset = explicit.suited(net, self.dataset)
        source = self._weights if self._weights.exists() else wanted.weights
        if source is not None:
            explicit.load_weights(net, source)
        return net

    def explicit_row(self) -> Row:
        """Train or load the explicit network, and measure it.

        Returns:
            Its row of the metrics.
        """
        net, seconds = self._explicit()
        equations = capture(net, self.dataset.train_inputs[:2])
        self._count("explicit", baselines.by_name(net))
        return self._row("explicit", net) | {
            "seconds": seconds,
            **_size(net, equations.nonzeros, equations.nonzeros),
            "bytes": self._weights.stat().st_size,
        }

    def baseline_row(self, name: str) -> Row:
        """Prune the explicit network with another method, to the same sparsity, and measure it.

        Args:
            name: One of `baselines.ONE_SHOT`, `baselines.TRAINED` or `baselines.ROBUST`.

        Returns:
            Its row of the metrics.
        """
        settings, dataset = self.settings, self.dataset
        net, _ = self._explicit()
        # by default those the implicit model is matched on, here with their labels
        part = settings.evaluation.training_size or settings.implicit.training_size
        trained = data.sample(len(dataset.train_labels), part, self.seed)
        task = baselines.Task(
            net,
            self._calibration(),
            dataset.train_inputs[trained],
            dataset.train_labels[trained],
            epochs=settings.evaluation.epoch,
            batch_size=settings.evaluation.bs,
            lr=settings.explicit.lr,
            seed=self.seed,
        )
        begin = time.monotonic()
        methods = baselines.ONE_SHOT | baselines.TRAINED | baselines.ROBUST
        pruned = methods[name](task, settings.implicit.sparsity or 0.0)
        seconds = time.monotonic() - begin
        nonzeros, before = (capture(n, dataset.train_inputs[:2]).nonzeros for n in (pruned, net))
        self._count(name, baselines.by_name(pruned))
        return self._row(name, pruned) | {"seconds": seconds, **_size(pruned, nonzeros, before)}

    def finetuned_row(self) -> Row:
        """Distil the saved implicit model on its support, and measure it.

        Returns:
            Its row of the metrics.
        """
        net, _ = self._explicit()
        begin = time.monotonic()
        model = finetune(
            archive.load(self.folder).to(self.settings.device),
            net,
            self._calibration().to(self.settings.device),
            epochs=self.settings.implicit.finetune,
            eps=self.settings.implicit.finetune_eps,
            batch_size=self.settings.evaluation.bs,
            seed=self.seed,
        )
        seconds = time.monotonic() - begin
        model.save(self.folder / "finetuned")
        return self._row("finetuned", model) | {
            "seconds": seconds,
            "nonzeros": model.nonzeros,
            "parameters": model.parameters_count,
            "sparsity": model.sparsity,
            "states": model.n,
            "structure": model.structure,
        }

    def implicit_row(self, old: Row) -> Row:
        """Match the implicit model, or load it, and measure it.

        Args:
            old: Its earlier row; `evaluate` keeps what that says of the making.

        Returns:
            Its row of the metrics.
        """
        if self.settings.implicit.evaluate:
            model = archive.load(self.folder)
            made = {"seconds": math.nan} | {k: v for k, v in old.items() if k.startswith(MADE)}
        else:
            model, made = self._fit()
        with torch.no_grad():
            # without the states: those of all test images together would fill the memory
            found = [
                (e.converged, e.residual, e.steps)
                for e in map(model.equilibrium, self._test_batches(model))
            ]
        converged, residual, steps = (torch.cat(parts) for parts in zip(*found, strict=True))
        certificate = model.certificate
        self._tables["convergence"] = self._curve(model)
        return self._row("implicit", model) | {
            "seconds": made.pop("seconds"),
            "nonzeros": model.nonzeros,
            "parameters": model.parameters_count,
            "sparsity": model.sparsity,
            "bytes": (self.folder / archive.NUMBERS).stat().st_size,
            "states": model.n,
            "structure": model.structure,
            "objective": self.settings.implicit.objective,
            "kappa": self.settings.implicit.kappa,
            "well_posed": certificate.well_posed,
            "certificate_norm": certificate.norm,
            "certificate_method": certificate.method,
            "converged": float(converged.double().mean()),
            "max_residual": float(residual.max()),
            "max_steps": int(steps.max()),
            "peak_memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            **made,
        }

    def write_tables(self, folder: Path) -> None:
        """Write this seed's records into the run's tables, other seeds' and models' kept.

        Args:
            folder: The run folder.
        """
        for name, rows in self._tables.items():
            path = folder / f"{name}.csv"
            others = read.table(path, ["seed"]) if path.exists() else []
            new = {row.get("model") for row in rows}
            kept = [r for r in others if r["seed"] != str(self.seed) or r.get("model") not in new]
            files.write_csv(path, [*kept, *({"seed": self.seed, **row} for row in rows)])
        self._tables.clear()

    # the explicit network and the seconds its training took
    def _explicit(self) -> tuple[nn.Module, float]:
        self._net = self._net or self._load_or_train()
        return self._net

    def _load_or_train(self) -> tuple[nn.Module, float]:
        wanted, dataset, device = self.settings.explicit, self.dataset, self.settings.device
        net = self.build().to(device)
        if self._weights.exists():
            with safe_open(self._weights, "pt") as file:
                return net, float((file.metadata() or {}).get("seconds", "nan"))
        begin, seconds = time.monotonic(), math.nan
        if wanted.weights is None:
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
                device=device,
                log_interval=wanted.log_interval,
            )
            seconds = time.monotonic() - begin
        weights = {k: v.detach().cpu().contiguous().clone() for k, v in net.state_dict().items()}
        metadata = {"seconds": str(seconds)}
        files.write_bytes(self._weights, safetensors.torch.save(weights, metadata))
        return net, seconds

    def _fit(self) -> tuple[ImplicitModel, Row]:
        wanted = self.settings.implicit
        net, _ = self._explicit()
        recipe = Recipe(
            **{f.name: getattr(wanted, f.name) for f in fields(Recipe) if hasattr(wanted, f.name)}
        )
        result = fit(
            net,
            self._calibration(),
            recipe,
            batch_size=self.settings.evaluation.bs,
            workers=wanted.workers,
            device=self.settings.device,
            checkpoint=self.checkpoint,
        )
        result.model.save(self.folder)
        self._tables |= {"rows": result.rows, "trace": result.trace}
        if result.levels:
            self._tables["levels"] = result.levels
        self._count("implicit", _by_layer(result.rows, net))
        return result.model, {
            "seconds": sum(result.seconds.values()),
            "rows": len(result.rows),
            "rows_solved": sum(row["status"] == "solved" for row in result.rows),
            "max_relative_gap": max(row["relative_gap"] for row in result.rows),
            **{f"seconds_{name}": value for name, value in result.seconds.items()},
        }

    def _count(self, model: str, nonzeros: dict[str, int]) -> None:
        records = [{"model": model, "layer": k, "nonzeros": n} for k, n in nonzeros.items()]
        self._tables.setdefault("layers", []).extend(records)

    # unlabelled: the same samples for all that match or prune with them
    def _calibration(self) -> Tensor:
        part = self.settings.implicit.training_size
        return self.dataset.train_inputs[
            data.sample(len(self.dataset.train_labels), part, self.seed)
        ]

    def _row(self, name: str, net: nn.Module) -> Row:
        begin = time.monotonic()
        found = accuracy(net, self.dataset, self.settings.evaluation.bs)
        seconds = time.monotonic() - begin
        if self.settings.evaluation.metric == "robustness":
            self._attack(name, net)
        return {
            "model": name,
            "dataset": self.dataset.name,
            "seed": self.seed,
            "test_accuracy": found,
            "inference_seconds": seconds,
        }

    # the rows of robustness.csv, and what its figures show of this model
    def _attack(self, name: str, net: nn.Module) -> None:
        wanted = self.settings.evaluation
        u, y = self.dataset.test_inputs, self.dataset.test_labels
        chosen = data.sample(len(y), min(1.0, wanted.samples / len(y)), self.seed)
        u, y = u[chosen], y[chosen]
        with progress.task(f"attacking {name}", total=1.0) as step:
            rows = robustness.evaluate(
                net,
                u,
                y,
                wanted.eps,
                wanted.attacks,
                source=self._explicit()[0],
                seed=self.seed,
                progress=step,
            )
        self._tables["robustness"] = [{"model": name, **row} for row in rows]
        shown = robustness.shown(net, u, y, wanted.eps, seed=self.seed)
        kept = self.folder / robustness.SHOWN
        before = safetensors.torch.load_file(kept) if kept.exists() else {}
        mine = {f"{name}/{key}": value for key, value in shown.items()}
        files.write_bytes(kept, safetensors.torch.save(before | mine))

    def _test_batches(self, model: ImplicitModel) -> tuple[Tensor, ...]:
        size = max(1, min(2000, STATES // model.n))
        return self.dataset.test_inputs.to(self.settings.device).split(size)

    # residual against step of Picard's iteration on the first test images; where A is never written
    # out there is one step, the pass through the layers
    def _curve(self, model: ImplicitModel) -> list[Row]:
        u = self._test_batches(model)[0]
        method = "picard" if model.equations is None else "exact"
        with torch.no_grad():
            found = model.equilibrium(u, method=method, max_steps=CURVE_STEPS, history=True)
        residuals = found.residual[None] if found.history is None else found.history
        history = _carried_forward(residuals.cpu().double())
        return [
            {
                "model": "implicit",
                "step": step + 1,
                "residual_median": float(residuals.median()),
                "residual_max": float(residuals.max()),
            }
            for step, residuals in enumerate(history)
        ]


def accuracy(net: nn.Module, dataset: data.Dataset, batch_size: int) -> float:
    """Measure a network on the test set.

    Args:
        net: Any network that returns logits.
        dataset: The data.
        batch_size: Samples at a time.

    Returns:
        The fraction classified correctly.
    """
    return explicit.accuracy(net, dataset.test_inputs, dataset.test_labels, batch_size)


def _size(net: nn.Module, nonzeros: int, before: int) -> Row:
    return {
        "nonzeros": nonzeros,
        "parameters": sum(p.numel() for p in net.parameters() if p.ndim > 1),
        "sparsity": 1 - nonzeros / before,
    }


# non-zeros by the layer's name in the network, where the rows say `output` of the last one
def _by_layer(rows: list[Row], net: nn.Module) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        found[row["layer"]] = found.get(row["layer"], 0) + row["nonzeros"]
    others = [name for name in baselines.by_name(net) if name not in found]
    last = others[0] if len(others) == 1 else "output"
    return {last if layer == "output" else layer: n for layer, n in found.items()}


# gives samples that have converged their last residual at the later steps
def _carried_forward(history: Float[Tensor, "k m"]) -> Float[Tensor, "k m"]:
    filled = [history[0]]
    for residuals in history[1:]:
        filled.append(torch.where(residuals.isnan(), filled[-1], residuals))
    return torch.stack(filled)
