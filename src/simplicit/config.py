"""The YAML file, strictly: every key is known, every value possible, every error one line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from yaml import MarkedYAMLError, YAMLError

from .config_errors import explain, key
from .data import DATASETS, is_file
from .errors import InputError
from .evaluate.robustness import Attack
from .explicit import OPTIMIZERS
from .networks import ACTIVATIONS, CONVOLUTIONAL
from .recipe import PRESETS

COUNT = "a whole number, at least 1"
PART = "a number above 0, at most 1 (0.05 is 5 %)"
POSITIVE = "a number above 0"
INSIDE = "a number above 0 and below 1"
SWITCH = "true or false"

Count = Annotated[int, Field(ge=1)]
Part = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Inside = Annotated[float, Field(gt=0, lt=1)]
File = Annotated[Path, Field(strict=False)]


Model = Literal[
    "explicit",
    "implicit",
    "random",
    "magnitude",
    "wanda",
    "obs",
    "gmp",
    "sss",
    "spr",
    "adversarial",
    "ibp",
    "decay",
]
"""What a run can evaluate: the two networks, and the methods of `baselines`."""

UNPRUNED = ("explicit", "implicit", "adversarial", "ibp", "decay")
"""Those that need no sparsity to prune to."""

Radius = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Frozen, strict about types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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
    preset: Literal["paper", "acml2025"] | None = key(
        None,
        "a paper's recipe; the file may change what it sets",
        "paper, acml2025 or null",
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
    bias: bool = key(True, "whether the implicit model has biases b and d", SWITCH)
    support: Literal["elimination", "relaxation"] = key(
        "elimination",
        "which weights a budget keeps: removed one by one, or those of the convex penalty, which "
        "full and robustness always take",
        ("elimination", "relaxation"),
    )
    sweeps: Annotated[int, Field(ge=0)] = key(
        9, "passes of joint matching on the outputs", "0, or a whole number, at least 4"
    )
    relu_aware: bool = key(True, "where a state is off, match only that it is off", SWITCH)
    sensitivity: bool = key(True, "weigh rows by how much the outputs depend on them", SWITCH)
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
        "radius within which finetune also trains for the worst case of intervals; for inputs in "
        "[0, 1] and structure triangular or layered",
        "a number, at least 0",
    )
    tol: Inside = key(1e-4, "relative duality gap at which a row is solved", INSIDE)

    @model_validator(mode="after")
    def _level_of_robustness(self) -> "Implicit":
        met = self.sparsity is not None and self.support == "elimination" and self.sweeps > 0
        free = self.structure != "full" and self.constraint == "states"
        if self.robustness is not None and not (self.objective == "robustness" and met and free):
            raise ValueError(
                "implicit.robustness: only with objective robustness, a sparsity to meet by "
                "elimination and sweeps, and structure triangular or layered"
            )
        return self

    @field_validator("sweeps")
    @classmethod
    def _none_or_enough(cls, sweeps: int) -> int:
        if 0 < sweeps < 4:
            raise ValueError
        return sweeps

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        name = values.get("preset") if isinstance(values, dict) else None
        return PRESETS[name] | values if isinstance(name, str) and name in PRESETS else values


class Evaluation(Section):
    """What is measured, on which data."""

    baselines: tuple[Model, ...] = key(
        ("explicit", "implicit"),
        "which models are evaluated, at the sparsity of the implicit one",
        "a list of explicit, implicit, random, magnitude, wanda, obs, gmp, sss, spr, adversarial, "
        "ibp, decay, each at most once",
        min_length=1,
        strict=False,
    )
    metric: Literal["sparsity", "robustness"] = key(
        "sparsity", "what is reported beside the accuracy", ("sparsity", "robustness")
    )
    eps: tuple[Radius, ...] = key(
        (0.0, 0.01, 0.02, 0.05, 0.1, 0.2),
        "radii of attacks and certificates, with metric robustness; images have values in [0, 1]",
        "a list of numbers, at least 0, each once",
        min_length=1,
        strict=False,
    )
    attacks: tuple[Attack, ...] = key(
        ("fgsm", "pgd", "pgd-100", "transfer", "corners"),
        "attacks, with metric robustness; autoattack and foolbox need the extra attacks",
        "a list of fgsm, pgd, pgd-100, pgd-l2, transfer, corners, brightness, gaussian, blur, "
        "autoattack, foolbox, each at most once",
        strict=False,
    )
    samples: Count = key(1000, "test samples that are attacked, drawn by the seed", COUNT)
    dataset: str = key("FashionMNIST", "dataset", (*DATASETS, "the path of a file name.npz"))
    epoch: Count = key(5, "passes over them that a baseline may train for", COUNT)
    training_size: Part | None = key(
        None, "fraction of the training set that a baseline may train on", f"{PART}, or null"
    )
    bs: Count = key(64, "every batch size", COUNT)

    @field_validator("baselines", "eps", "attacks")
    @classmethod
    def _distinct(cls, names: tuple[Any, ...]) -> tuple[Any, ...]:
        return _each_once(names)

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, name: str) -> str:
        return name if is_file(name) else _one_of(DATASETS, name)


class Config(Section):
    """One run, with every default filled in."""

    explicit: Explicit = key(Explicit(), "the explicit network", "a section of keys")
    implicit: Implicit = key(Implicit(), "the implicit model", "a section of keys")
    evaluation: Evaluation = key(Evaluation(), "the evaluation", "a section of keys")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = key(
        (0,),
        "one full run each",
        "a list of whole numbers, at least 0, each once ([0, 1, 2])",
        min_length=1,
        strict=False,
    )
    data_dir: File = key(Path("data"), "folder of the datasets", "a path")
    device: str = key(
        "cpu", "where tensors live", "cpu, cuda, cuda:N or mps", pattern=r"^(cpu|mps|cuda(:\d+)?)$"
    )

    @model_validator(mode="after")
    def _sparsity_of_the_baselines(self) -> "Config":
        pruned = [m for m in self.evaluation.baselines if m not in UNPRUNED]
        if pruned and self.implicit.sparsity is None:
            raise ValueError(
                f"implicit.sparsity: {pruned[0]} of evaluation.baselines needs one to prune to"
            )
        return self

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _each_once(seeds)

    def to_yaml(self) -> str:
        """The whole configuration as YAML that `load` reads back to an equal one.

        Returns:
            The text.
        """
        return OmegaConf.to_yaml(OmegaConf.create(self.model_dump(mode="json")))


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file.

    A file that cannot be read, and a key or value that is not accepted, is an `InputError`: one
    line that names it.

    Args:
        path: A YAML file; numbers like `1e-2` are numbers.
        overrides: `key=value` with dots between section and key, e.g. `implicit.kappa=0.9`; the
            value is YAML. They win over the file.

    Returns:
        The configuration, frozen.
    """
    return _validate(_read(path, overrides))


def load_each(path: Path | str, overrides: Sequence[str] = ()) -> tuple[Config, ...]:
    """Read a configuration file whose `implicit.sparsity` may be a list.

    Args:
        path: As in `load`.
        overrides: As in `load`, e.g. `implicit.sparsity=[0.8,0.9]`.

    Returns:
        One configuration per sparsity, in the list's order.

    Raises:
        InputError: As `load`; also if the list is empty or names a sparsity twice.
    """
    values = _read(path, overrides)
    implicit = values.get("implicit")
    wanted = implicit.get("sparsity") if isinstance(implicit, dict) else None
    if not isinstance(implicit, dict) or not isinstance(wanted, list):
        return (_validate(values),)
    if not wanted or any(wanted.count(sparsity) > 1 for sparsity in wanted):
        raise InputError(
            f"implicit.sparsity = {wanted}: accepted is a number, or a list of them, each once"
        )
    return tuple(_validate(values | {"implicit": implicit | {"sparsity": s}}) for s in wanted)


def _read(path: Path | str, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        tree: Any = OmegaConf.load(path)
        if not isinstance(tree, DictConfig) or not tree:
            raise InputError(f"{path}: no keys; expected are {', '.join(Config.model_fields)}")
        for override in overrides:
            tree = _override(tree, override)
        values: Any = OmegaConf.to_container(tree, resolve=True)
        return values
    except YAMLError as error:
        raise InputError(f"{path}{_explain_yaml(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'not a mapping of sections'}") from error
    except OmegaConfBaseException as error:
        where = f" {error.full_key}:" if error.full_key else ""
        raise InputError(f"{path}:{where} {str(error).splitlines()[0]}") from error


def _validate(values: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error, Config)) from error


def _override(tree: Any, override: str) -> Any:
    name, equals, _ = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", name):
        raise InputError(f"override {override!r}: expected is key=value, e.g. implicit.kappa=0.9")
    try:
        return OmegaConf.merge(tree, OmegaConf.from_dotlist([override]))
    except YAMLError as error:
        raise InputError(f"override {override!r}: the value is not valid YAML") from error
    except TypeError as error:
        parent = name.rpartition(".")[0]
        raise InputError(f"override {override!r}: {parent} has no keys of its own") from error


def _explain_yaml(error: YAMLError) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        return f", line {error.problem_mark.line + 1}: not valid YAML ({error.problem})"
    return f": not valid YAML ({str(error).splitlines()[0]})"


def _one_of(accepted: Sequence[str], name: str) -> str:
    if name not in accepted:
        raise ValueError
    return name


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError
    return values
