"""The sections of a configuration: every key, its default, its meaning and what is accepted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from simplicit.data.datasets import DATASETS, is_file
from simplicit.explicit.by_name import ACTIVATIONS, CONVOLUTIONAL
from simplicit.explicit.training import OPTIMIZERS
from simplicit.lab.config.errors import key
from simplicit.lab.evaluate.robustness import ATTACKS, Attack
from simplicit.lab.methods import MODELS
from simplicit.recipe import PATTERNS, PRESETS, n_of_m

COUNT = "a whole number, at least 1"
PART = "a number above 0, at most 1 (0.05 is 5 %)"
POSITIVE = "a number above 0"
INSIDE = "a number above 0 and below 1"
SWITCH = "true or false"

Count = Annotated[int, Field(ge=1)]
Part = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Inside = Annotated[float, Field(gt=0, lt=1)]
Radius = Annotated[float, Field(ge=0, allow_inf_nan=False)]
File = Annotated[Path, Field(strict=False)]


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError
    return values


EachOnce = AfterValidator(_each_once)
"""Of a list whose entries differ."""

Model = Annotated[str, AfterValidator(lambda name: _one_of(MODELS, name))]
"""A model that a run can evaluate."""


class Section(BaseModel):
    """Frozen, strict about types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _one_of(accepted: Sequence[str], name: str) -> str:
    if name not in accepted:
        raise ValueError
    return name


class Explicit(Section):
    """The explicit network: its shape, and how it is trained."""

    type: str = key(
        "fnn",
        "plain feed-forward network, a convolutional one, or a class of your own",
        f"fnn, {', '.join(CONVOLUTIONAL)} or an import path package.module:Class",
        pattern=rf"^(fnn|{'|'.join(CONVOLUTIONAL)}|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$",
    )
    architecture: tuple[Count, ...] = key(
        (784, 64, 32, 16, 10),
        "layer sizes of an fnn, inputs first, classes last",
        "a list of at least 2 whole numbers, each at least 1",
        min_length=2,
        strict=False,
    )
    bias: bool = key(False, "whether the layers of an fnn have biases", SWITCH)
    activation: Literal["relu", "leaky_relu", "tanh", "sigmoid"] = key(
        "relu", "what an fnn has between its layers", tuple(ACTIVATIONS)
    )
    arguments: dict[str, Any] = key(
        {},
        "keyword arguments of the class of another network than an fnn",
        "a mapping of argument names",
    )
    weights: File | None = key(
        None, "trained weights to load instead of training", "a .safetensors file, or null"
    )
    optimizer: str = key("Adam", "optimiser of torch.optim", OPTIMIZERS)
    epoch: Count = key(10, "passes over the training set", COUNT)
    lr: Positive = key(1e-3, "learning rate", POSITIVE)
    log_interval: Count = key(10_000, "samples between two log lines", COUNT)
    training_size: Part = key(1.0, "fraction of the training set to train on", PART)

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        return _one_of(OPTIMIZERS, name)

    @model_validator(mode="after")
    def _arguments_of_a_class(self) -> "Explicit":
        if self.arguments and self.type == "fnn":
            raise ValueError(
                "explicit.arguments: only with a convolutional network or an import path as "
                "explicit.type"
            )
        return self


class Implicit(Section):
    """The implicit model: what is minimised, over which structure, and how it is solved."""

    evaluate: bool = key(False, "load the saved model instead of making one", SWITCH)
    workers: Count = key(1, "parallel workers, reduced to the cores there are", COUNT)
    executor: Literal["threads", "processes"] = key(
        "threads", "what the workers are; --scheduler takes a cluster's", "threads, processes"
    )
    time_limit: Positive | None = key(
        None,
        "seconds for making the implicit model; where they are short, steps are left out and named",
        "a number above 0, or null",
    )
    preset: Literal["seed", "paper", "acml2025"] | None = key(
        None,
        "a paper's recipe; the file may change what it sets; seed is what a file says anyway",
        "seed, paper, acml2025 or null",
    )
    structure: Literal["auto", "full", "triangular", "layered"] = key(
        "auto",
        "which entries of A may be used",
        ("auto", "full", "triangular", "layered"),
    )
    kappa: Inside = key(0.99, "bound on the norm of A, in full structure, or of whole rows", INSIDE)
    constraint: Literal["states", "row"] = key(
        "states",
        "what kappa bounds: the states' part of a row, in full structure, or the whole row",
        ("states", "row"),
    )
    objective: Literal["sparsity", "robustness"] = key(
        "sparsity", "which penalty: few weights, or small row norms", ("sparsity", "robustness")
    )
    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = key(
        None,
        "fraction of the explicit network's weights to do without; overrides alpha, sparsity_ratio",
        "a number, at least 0 and below 1, or null; a list of them with simplicit compare",
    )
    lambda1: Positive = key(0.1, "weight of the matching loss", POSITIVE)
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = key(
        1e-2, "weight of the penalty", "a number, at least 0"
    )
    sparsity_ratio: Annotated[float, Field(ge=0, lt=100)] = key(
        0.0,
        "percentage of the smallest weights pruned after the solve",
        "a number, at least 0 and below 100 (30 is 30 %)",
    )
    training_size: Part = key(0.2, "fraction of the training set whose states are matched", PART)
    augmentation: Count = key(
        1,
        "copies of each calibration image: itself, its mirror image, then shifted ones, every "
        "other mirrored; one-shot baselines see them, too",
        COUNT,
    )
    bias: bool = key(True, "whether the implicit model has biases b and d", SWITCH)
    support: Literal["auto", "splitting", "elimination", "relaxation"] = key(
        "auto",
        "which weights a budget keeps: chosen by ADMM for all rows of a layer at once, left when "
        "the others were removed one by one (the cube of a row's length), or those of the convex "
        "penalty, which objective robustness without a level always takes; auto is elimination in "
        "full structure, and splitting in the others",
        ("auto", "splitting", "elimination", "relaxation"),
    )
    sweeps: Annotated[int, Field(ge=0)] | None = key(
        None,
        "passes of sweeps on the outputs; null: 9 for networks of matrices, 0 for others",
        "null, 0, or a whole number, at least 4",
    )
    relu_aware: bool = key(True, "where a state is off, match only that it is off", SWITCH)
    sensitivity: bool = key(True, "weigh rows by how much the outputs depend on them", SWITCH)
    skip: tuple[str, ...] = key(
        (),
        "layers that stay as they are, weights and biases; they count against the budget",
        "a list of glob patterns of module paths",
        strict=False,
    )
    rank: Annotated[int, Field(ge=1)] | Literal["auto"] | None = key(
        None,
        "layers by factors of at most this rank, with single weights beside them where there is a "
        "sparsity; auto: ranks that meet the sparsity; in structure full the rank of A",
        "null, auto, or a whole number, at least 1",
    )
    pattern: str = key(
        "weights",
        "which weights may be zero: single ones, or m - n of every m neighbouring input channels; "
        "channels: whole neurons and channels go, for one of sparsity, flops and speedup",
        f"{', '.join(PATTERNS)}, or n:m with 0 < n < m, e.g. '2:4'",
    )
    flops: Inside | None = key(
        None,
        "fraction of the multiply-adds to do without, with pattern channels",
        "a number above 0 and below 1, or null",
    )
    speedup: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = key(
        None,
        "how many times faster torch's modules are to be here, with pattern channels",
        "a number above 1, or null",
    )
    blocks: tuple[Count, Count] | None = key(
        None,
        "rows and input channels of blocks that are zero together",
        "a list of two whole numbers, at least 1 and not both 1, or null",
        strict=False,
    )
    closed_loop: bool = key(
        True,
        "match each layer on the states of the model so far; in full, the outputs on its own "
        "equilibrium",
        SWITCH,
    )
    robustness: Inside | None = key(
        None,
        "accuracy that objective robustness may cost, estimated without labels on held-out "
        "calibration inputs; the strongest level that costs no more is taken",
        "a number above 0 and below 1 (0.01 is one point), or null",
    )
    loss: Literal["root", "squared"] = key(
        "root", "matching loss of objective robustness without a level", ("root", "squared")
    )
    finetune: Annotated[int, Field(ge=0)] = key(
        0,
        "passes over the calibration inputs that distil the model on its support, with gradients; "
        "reported apart, as model finetuned",
        "a whole number, at least 0",
    )
    finetune_eps: Radius = key(
        0.0,
        "radius within which finetune also trains for the worst case of intervals, and the one "
        "that baselines ibp and adversarial train for (0.05 where this is 0); for inputs in [0, 1] "
        "and structure triangular or layered",
        "a number, at least 0",
    )
    tol: Inside = key(1e-4, "relative duality gap at which a row is solved", INSIDE)

    @model_validator(mode="after")
    def _level_of_robustness(self) -> "Implicit":
        met = self.sparsity is not None and self.support != "relaxation"
        free = self.structure != "full" and self.constraint == "states"
        if self.robustness is not None and not (self.objective == "robustness" and met and free):
            raise ValueError(
                "implicit.robustness: only with objective robustness, a sparsity, any support but "
                "relaxation, and structure triangular or layered"
            )
        return self

    @model_validator(mode="after")
    def _rank_alone(self) -> "Implicit":
        if self.rank == "auto" and self.sparsity is None:
            raise ValueError("implicit.rank: auto only with a sparsity")
        if self.rank is not None and self.preset is not None:
            raise ValueError("implicit.rank: only without a preset")
        return self

    @model_validator(mode="after")
    def _one_budget_of_units(self) -> "Implicit":
        asked = [n for n in ("sparsity", "flops", "speedup") if getattr(self, n) is not None]
        if self.pattern == "channels" and len(asked) != 1:
            raise ValueError("implicit.pattern: channels with one of sparsity, flops and speedup")
        if self.pattern != "channels" and set(asked) - {"sparsity"}:
            raise ValueError(f"implicit.{asked[-1]}: only with pattern channels")
        if self.pattern == "channels" and self.structure not in ("auto", "layered"):
            raise ValueError("implicit.structure: accepted with pattern channels are auto, layered")
        return self

    @field_validator("pattern")
    @classmethod
    def _known_pattern(cls, pattern: str) -> str:
        return pattern if pattern in PATTERNS or n_of_m(pattern) else _one_of(PATTERNS, pattern)

    @field_validator("blocks")
    @classmethod
    def _larger_than_weights(cls, blocks: tuple[int, int] | None) -> tuple[int, int] | None:
        if blocks == (1, 1):
            raise ValueError
        return blocks

    @field_validator("sweeps")
    @classmethod
    def _none_or_enough(cls, sweeps: int | None) -> int | None:
        if sweeps and sweeps < 4:
            raise ValueError
        return sweeps

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        name = values.get("preset") if isinstance(values, dict) else None
        return PRESETS[name] | values if isinstance(name, str) and name in PRESETS else values


class Evaluation(Section):
    """What is measured, on which data."""

    baselines: Annotated[tuple[Model, ...], EachOnce] = key(
        ("explicit", "implicit"),
        "which models are evaluated, at the sparsity of the implicit one",
        f"a list of {', '.join(MODELS)}, each at most once",
        min_length=1,
        strict=False,
    )
    metric: Literal["sparsity", "robustness"] = key(
        "sparsity", "what is reported beside the accuracy", ("sparsity", "robustness")
    )
    eps: Annotated[tuple[Radius, ...], EachOnce] = key(
        (0.0, 0.01, 0.02, 0.05, 0.1, 0.2),
        "radii of attacks and certificates, with metric robustness; images have values in [0, 1]",
        "a list of numbers, at least 0, each once",
        min_length=1,
        strict=False,
    )
    attacks: Annotated[tuple[Attack, ...], EachOnce] = key(
        ("fgsm", "pgd", "pgd-100", "transfer", "corners"),
        "attacks, with metric robustness; autoattack and foolbox need the extra attacks",
        f"a list of {', '.join(ATTACKS)}, each at most once",
        strict=False,
    )
    samples: Count = key(1000, "test samples that are attacked, drawn by the seed", COUNT)
    dataset: str = key("FashionMNIST", "dataset", (*DATASETS, "the path of a file name.npz"))
    epoch: Count = key(5, "passes over them that a baseline may train for", COUNT)
    training_size: Part | None = key(
        None, "fraction of the training set that a baseline may train on", f"{PART}, or null"
    )
    bs: Count = key(64, "every batch size", COUNT)
    speed: bool | None = key(
        None,
        "whether the time of a sample is measured, on this machine's processor; null: with metric "
        "sparsity",
        "true, false or null",
    )

    @property
    def timed(self) -> bool:
        """Whether the time of a sample is measured."""
        return self.metric == "sparsity" if self.speed is None else self.speed

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, name: str) -> str:
        return name if is_file(name) else _one_of(DATASETS, name)
