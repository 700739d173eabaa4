"""The two models of one seed: trained, matched or loaded, then measured and kept."""

import math
import resource
import shutil
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import safe_open
from torch import Tensor, nn

from simplicit.calibration.rows import rows_of
from simplicit.calibration.skipped import skipped
from simplicit.calibration.structure import structured
from simplicit.capture.read import capture
from simplicit.data import datasets as data
from simplicit.data.augment import augmented
from simplicit.equations.network import StateEquations
from simplicit.explicit import training as explicit
from simplicit.explicit.kept import Trainings
from simplicit.fit import fit, structure_of
from simplicit.lab import baselines
from simplicit.lab.config.config import Config
from simplicit.lab.evaluate import speed
from simplicit.lab.results.shown import FILE
from simplicit.lab.run import measure
from simplicit.lab.run.origin import DIGITS
from simplicit.lab.run.standing import WEIGHTS, table
from simplicit.matching.records import UNSOLVED
from simplicit.matching.ways.patterns import patterned
from simplicit.model.archive import sealed
from simplicit.model.archive.format import NUMBERS
from simplicit.model.implicit import ImplicitModel
from simplicit.model.saved import load
from simplicit.recipe import Recipe
from simplicit.refine.finetune import finetune
from simplicit.system import files, progress
from simplicit.workers.executors import Asked

Row = dict[str, Any]

FIRST = {"kappa": 0.99, "alpha": 1e-2, "lambda1": 0.1, "sparsity_ratio": 0.0}
"""Keys of the first release, which stay valid where they do nothing: `run.advise` says so. Their
defaults."""

MADE = ("seconds", "rows", "max_relative_gap")
"""How the columns begin that say how a model was made; `evaluate` keeps them."""


class SeedRun:
    """The models of one seed and where they are kept.

    Args:
        settings: The run's configuration.
        dataset: Its data.
        seed: Seed of the initial weights, of the order of training and of the samples chosen.
        folder: Where the models are.
        executor: Who takes the work, see `fit`; the configuration says it by default.
    """

    def __init__(
        self,
        settings: Config,
        dataset: data.Dataset,
        seed: int,
        folder: Path,
        executor: Asked = None,
    ) -> None:
        self.settings, self.dataset, self.seed, self.folder = settings, dataset, seed, folder
        self.executor = settings.implicit.executor if executor is None else executor
        self.checkpoint = folder / "checkpoint"
        self._weights = folder / WEIGHTS
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
        # refuses what is no image, before anything is trained
        augmented(self.dataset.train_inputs[:1], self.settings.implicit.augmentation, self.seed)
        source = self._weights if self._weights.exists() else wanted.weights
        if source is not None:
            explicit.load_weights(net, source)
        return net

    def read(self) -> StateEquations:
        """Read the explicit network's state equations, with whatever weights it has by now.

        An option that its implicit model would not hear is an `InputError`.

        Returns:
            The equations.
        """
        equations = capture(self.build(), self.dataset.train_inputs[:2])
        self.recipe(equations)
        return equations

    def recipe(self, equations: StateEquations) -> Recipe:
        """Say what is asked of the implicit model.

        An option that it would not hear is an `InputError`.

        Args:
            equations: The explicit network's.

        Returns:
            The recipe.
        """
        wanted = self.settings.implicit
        recipe = Recipe(
            **{f.name: getattr(wanted, f.name) for f in fields(Recipe) if hasattr(wanted, f.name)}
        )
        structure = structure_of(recipe, equations)
        unheard = recipe.unheard(not equations.structured, structure)
        recipe = replace(recipe, **{name: FIRST[name] for name in unheard.keys() & FIRST.keys()})
        recipe.require_heard(not equations.structured, structure)
        written = structured(equations, structure)
        left = skipped(written, recipe.skip)
        patterned(recipe, rows_of(written, left), written.layers)
        return recipe

    def explicit_row(self) -> Row:
        """Train or load the explicit network, and measure it.

        Returns:
            Its row of the metrics.
        """
        net, seconds = self._explicit()
        equations = capture(net, self.dataset.train_inputs[:2])
        self._count("explicit", baselines.by_name(net))
        return (
            self._row("explicit", net)
            | self._timed("explicit", None)
            | {
                "seconds": seconds,
                **measure.size(net, equations.nonzeros, equations.nonzeros),
                "bytes": self._weights.stat().st_size,
            }
        )

    def baseline_row(self, name: str) -> Row:
        """Prune the explicit network with another method, to the same sparsity, and measure it.

        Args:
            name: One of `baselines.METHODS`.

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
            eps=settings.implicit.finetune_eps or baselines.Task.eps,
        )
        begin = time.monotonic()
        pruned = baselines.METHODS[name](task, settings.implicit.sparsity or 0.0)
        seconds = time.monotonic() - begin + task.kept.earlier
        nonzeros, before = (capture(n, dataset.train_inputs[:2]).nonzeros for n in (pruned, net))
        self._count(name, baselines.by_name(pruned))
        return (
            self._row(name, pruned)
            | self._timed(name, pruned)
            | {
                "seconds": seconds,
                **measure.size(pruned, nonzeros, before),
            }
        )

    def finetuned_row(self) -> Row:
        """Distil the saved implicit model on its support, and measure it.

        Returns:
            Its row of the metrics.
        """
        net, _ = self._explicit()
        begin, kept = time.monotonic(), Trainings(self.checkpoint / "finetuned")
        model = finetune(
            load(self.folder).to(self.settings.device),
            net,
            self._calibration().to(self.settings.device),
            epochs=self.settings.implicit.finetune,
            eps=self.settings.implicit.finetune_eps,
            batch_size=self.settings.evaluation.bs,
            seed=self.seed,
            kept=kept,
        )
        seconds = time.monotonic() - begin + kept.earlier
        model.save(self.folder / "finetuned")
        return (
            self._row("finetuned", model)
            | self._timed("finetuned", model)
            | {
                "seconds": seconds,
                "nonzeros": model.nonzeros,
                "parameters": model.parameters_count,
                "sparsity": model.sparsity,
                "states": model.n,
                "structure": model.structure,
            }
        )

    def implicit_row(self, old: Row) -> Row:
        """Match the implicit model, or load it, and measure it.

        Args:
            old: Its earlier row; `evaluate` keeps what that says of the making.

        Returns:
            Its row of the metrics.
        """
        if self.settings.implicit.evaluate:
            model = load(self.folder)
            made = {"seconds": math.nan} | {k: v for k, v in old.items() if k.startswith(MADE)}
        else:
            model, made = self._fit()
        inputs = self.dataset.test_inputs.to(self.settings.device)
        equilibria = measure.equilibria(model, inputs)
        certificate = model.certificate
        self._tables["convergence"] = measure.curve(model, inputs)
        return (
            self._row("implicit", model)
            | self._timed("implicit", model)
            | {
                "seconds": made.pop("seconds"),
                "nonzeros": model.nonzeros,
                "parameters": model.parameters_count,
                "sparsity": model.sparsity,
                "bytes": (self.folder / NUMBERS).stat().st_size,
                "states": model.n,
                "structure": model.structure,
                "objective": self.settings.implicit.objective,
                "kappa": self.settings.implicit.kappa,
                "well_posed": certificate.well_posed,
                "certificate_norm": certificate.norm,
                "certificate_method": certificate.method,
                **equilibria,
                "peak_memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                **made,
            }
        )

    def write_tables(self, folder: Path) -> None:
        """Write this seed's records into the run's tables, other seeds' and models' kept.

        Args:
            folder: The run folder.
        """
        for name, rows in self._tables.items():
            path = folder / f"{name}.csv"
            others = table(path) if path.exists() else []
            new = {row.get("model") for row in rows}
            kept = [r for r in others if r["seed"] != str(self.seed) or r.get("model") not in new]
            files.write_csv(path, [*kept, *({"seed": self.seed, **row} for row in rows)])
        self._tables.clear()

    def forget(self, model: str) -> None:
        """Remove what was kept for a model that was not finished.

        Args:
            model: One that is finished now.
        """
        shutil.rmtree(self.checkpoint / model, ignore_errors=True)

    @property
    def network(self) -> str:
        """A digest of the explicit network's weights; it is trained if need be."""
        net, _ = self._explicit()
        return sealed.digest(*net.state_dict().values())[:DIGITS]

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
        kept = Trainings(self.checkpoint / "explicit")
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
                kept=kept,
            )
            seconds = time.monotonic() - begin + kept.earlier
        # as many digits for every time: the file's bytes are a figure of the metrics
        sealed.write(self._weights, net.state_dict(), {"seconds": f"{seconds:.9e}"})
        self.forget("explicit")
        return net, seconds

    def _fit(self) -> tuple[ImplicitModel, Row]:
        wanted = self.settings.implicit
        net, _ = self._explicit()
        recipe = self.recipe(self.read())
        result = fit(
            net,
            self._calibration(),
            recipe,
            batch_size=self.settings.evaluation.bs,
            workers=wanted.workers,
            device=self.settings.device,
            checkpoint=self.checkpoint,
            time_limit=wanted.time_limit,
            executor=self.executor,
        )
        result.model.save(self.folder)
        self._tables |= {"rows": result.rows, "trace": result.trace, "budget": result.budgets}
        if result.units:
            self._tables["units"] = result.units
        if result.levels:
            self._tables["levels"] = result.levels
        self._count("implicit", measure.by_layer(result.rows, net))
        matched = [row for row in result.rows if row["status"] not in UNSOLVED]
        return result.model, {
            "seconds": sum(result.seconds.values()),
            "rows": len(matched),
            "rows_solved": sum(row["status"] == "solved" for row in matched),
            "max_relative_gap": max(row["relative_gap"] for row in matched),
            **({"rows_l0_gap": measure.l0_gap(matched)} if recipe.chooses else {}),
            **{f"seconds_{name}": value for name, value in result.seconds.items()},
        }

    def _count(self, model: str, nonzeros: dict[str, int]) -> None:
        records = [{"model": model, "layer": k, "nonzeros": n} for k, n in nonzeros.items()]
        self._tables.setdefault("layers", []).extend(records)

    # unlabelled: the same samples for all that match or prune with them
    def _calibration(self) -> Tensor:
        wanted = self.settings.implicit
        chosen = data.sample(len(self.dataset.train_labels), wanted.training_size, self.seed)
        return augmented(self.dataset.train_inputs[chosen], wanted.augmentation, self.seed)

    def _timed(self, name: str, made: nn.Module | None) -> Row:
        if not self.settings.evaluation.timed or self.seed != self.settings.seeds[0]:
            return {}  # seeds have other weights, not other times
        net, inputs = self._explicit()[0], self.dataset.test_inputs[: max(speed.BATCHES)]
        with progress.task(f"timing {name}", total=1) as step:
            # the network is timed again beside each of its models
            some = {"batches": speed.BATCHES[-1:], "threads": (1,)} if made is None else {}
            rows = self._tables["speed"] = speed.measure(name, net, made, inputs, **some)
            found = speed.summed_up(rows, net, made, inputs)
            step(1)
        return found

    def _row(self, name: str, net: nn.Module) -> Row:
        wanted, dataset = self.settings.evaluation, self.dataset
        begin = time.monotonic()
        found = explicit.accuracy(net, dataset.test_inputs, dataset.test_labels, wanted.bs)
        seconds = time.monotonic() - begin
        if wanted.metric == "robustness":
            rows, shown = measure.attacks(
                name, net, dataset, wanted, source=self._explicit()[0], seed=self.seed
            )
            self._tables["robustness"] = rows
            kept = self.folder / FILE
            before = safetensors.torch.load_file(kept) if kept.exists() else {}
            files.write_bytes(kept, safetensors.torch.save(before | shown))
        return {
            "model": name,
            "dataset": dataset.name,
            "seed": self.seed,
            "test_accuracy": found,
            "inference_seconds": seconds,
        }
