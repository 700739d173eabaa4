"""The YAML file, strictly: every key is known, every value possible, every error one line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, model_validator
from yaml import MarkedYAMLError, YAMLError

from simplicit.errors import InputError
from simplicit.lab.config.errors import explain, key
from simplicit.lab.config.sections import (
    EachOnce,
    Evaluation,
    Explicit,
    File,
    Implicit,
    Section,
)
from simplicit.lab.methods import prunes


class Config(Section):
    """One run, with every default filled in."""

    explicit: Explicit = key(Explicit(), "the explicit network", "a section of keys")
    implicit: Implicit = key(Implicit(), "the implicit model", "a section of keys")
    evaluation: Evaluation = key(Evaluation(), "the evaluation", "a section of keys")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], EachOnce] = key(
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
        pruned = [m for m in self.evaluation.baselines if prunes(m)]
        if pruned and self.implicit.sparsity is None:
            raise ValueError(
                f"implicit.sparsity: {pruned[0]} of evaluation.baselines needs one to prune to"
            )
        return self

    @model_validator(mode="after")
    def _attacks_that_need_no_feedback(self) -> "Config":
        wanted = self.evaluation.metric == "robustness" and "relaxation" in self.evaluation.attacks
        if wanted and self.implicit.structure == "full":
            raise ValueError(
                "evaluation.attacks: relaxation is for models without feedback; accepted with it "
                "is implicit.structure layered or triangular"
            )
        return self

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


def load_kept(folder: Path) -> Config:
    """Read the configuration that a run keeps in its folder.

    Args:
        folder: The run folder.

    Returns:
        The configuration.

    Raises:
        InputError: If there is none, or not one of this version; the line names the folder.
    """
    try:
        return load(folder / "config.yaml")
    except InputError as error:
        raise InputError(f"run folder {folder}: {error}") from error


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
