"""The saved model's weights as plain arrays, with the names the figures give their blocks."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from simplicit.errors import InputError
from simplicit.lab.results import read

DRAWN = 10**8
"""Most entries of A, B, C and D together that are written out: 800 MB."""


@dataclass(frozen=True)
class Matrices:
    """x = φ(A x + B u), y = C x + D u; the state's blocks are layers, last hidden layer first.

    Args:
        A: State to state.
        B: Input to state.
        C: State to output.
        D: Input to output.
        blocks: Name and size of each block of the state, in the order of x.
        input_shape: Shape of one sample.
        structure: `full`, `triangular` or `layered`.
    """

    A: Float[np.ndarray, "n n"]
    B: Float[np.ndarray, "n p"]
    C: Float[np.ndarray, "q n"]
    D: Float[np.ndarray, "q p"]
    blocks: tuple[tuple[str, int], ...]
    input_shape: tuple[int, ...]
    structure: str

    @property
    def whole(self) -> Float[np.ndarray, "nq np"]:
        """[A B; C D]."""
        return np.block([[self.A, self.B], [self.C, self.D]])

    @property
    def rows(self) -> list[tuple[str, int]]:
        """Label and size of each block of rows: the hidden layers, then the output."""
        return [*self._states, ("output", len(self.D))]

    @property
    def columns(self) -> list[tuple[str, int]]:
        """Label and size of each block of columns: the hidden layers, then the input."""
        return [*self._states, ("input", self.D.shape[1])]

    @property
    def _states(self) -> list[tuple[str, int]]:
        names = layer_labels([name for name, _ in self.blocks])
        return [(names[name], size) for name, size in self.blocks]


def layer_labels(names: list[str]) -> dict[str, str]:
    """Name layers for a reader: `nn.Sequential` calls them 0, 2, 4, which counts φ as well.

    Args:
        names: Module paths, last hidden layer first.

    Returns:
        A label for each name: itself, or `hidden 1` (the first layer) and so on for numbers.
    """
    depth = len(names)
    return {
        name: f"hidden {depth - i}" if name.replace(".", "").isdigit() else name
        for i, name in enumerate(names)
    }


def output_label(name: str) -> str:
    """Name the layer of the outputs for a reader.

    Args:
        name: Its module path.

    Returns:
        The path, or `output` for numbers.
    """
    return "output" if name.replace(".", "").isdigit() else name


def layer_names(run_dir: Path) -> dict[str, str]:
    """Read what to call the layers of a run.

    Args:
        run_dir: A run folder.

    Returns:
        As `layer_labels`; empty where no model has been saved yet.
    """
    try:
        header = read.from_json(run_dir / "model.json")
        labels = layer_labels([block["name"] for block in header["blocks"]])
        output = header["equations"]["output"]["name"] if "equations" in header else "output"
        return labels | {output: output_label(output)}
    except (InputError, KeyError, TypeError):
        return {}


def matrices(run_dir: Path) -> Matrices:
    """Read the saved model, of this release or the first one.

    Args:
        run_dir: A run folder with `model.safetensors` and `model.json`.

    Returns:
        Its matrices, dense.

    Raises:
        InputError: If a file is missing or is not a saved model, or the model has layers that are
            no matrices, or more entries than `DRAWN`.
    """
    header = read.from_json(run_dir / "model.json")
    try:
        blocks = tuple((block["name"], block["size"]) for block in header["blocks"])
        n, p = sum(size for _, size in blocks), math.prod(header["input_shape"])
        q = header["matrices"]["C"]["shape"][0] if "matrices" in header else _outputs(header)
        if (entries := (n + q) * (n + p)) > DRAWN:
            raise InputError(f"the model has {entries:,} entries, more than a figure can show")
        tensors = read.arrays(run_dir / "model.safetensors")
        if "matrices" in header:
            found = {k: _dense(tensors, k, header["matrices"][k]["shape"]) for k in "ABCD"}
        else:
            found = _from_equations(header, tensors, n, p, q)
        return Matrices(
            **found,
            blocks=blocks,
            input_shape=tuple(header["input_shape"]),
            structure=header["structure"],
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"model.safetensors and model.json do not fit: {error!r}") from None


def _outputs(header: dict[str, Any]) -> int:
    layers = [*header["equations"]["hidden"], header["equations"]["output"]]
    for layer in layers:
        plain = all(
            term["map"]["is"] == "Dense" and term["map"]["positions"] == 1 and term["fixed"] is None
            for term in layer["terms"]
        )
        if layer["fixed"] or not plain or layer["phi"]["is"] not in ("Phi", "Stacked"):
            raise InputError(
                "the model has convolutions or other layers that are no matrices, so no A, B, C, D "
                "to draw"
            )
    return header["weights"][_weight(layers[-1]["terms"][0])]["shape"][0]


# number of a term's weight
def _weight(term: dict[str, Any]) -> int:
    return int(term["map"]["weight"]["tensor"].removeprefix("learned."))


# a term is one block of [A B; C D]
def _from_equations(
    header: dict[str, Any], tensors: dict[str, np.ndarray], n: int, p: int, q: int
) -> dict[str, np.ndarray]:
    whole = np.zeros((n + q, n + p))
    weights = header["weights"]
    columns, stop = {-1: slice(n, n + p)}, n
    for k, layer in enumerate(header["equations"]["hidden"]):
        size = weights[_weight(layer["terms"][0])]["shape"][0]
        columns[k] = slice(stop - size, stop)
        stop -= size
    rows = [columns[k] for k in range(len(columns) - 1)] + [slice(n, n + q)]
    layers = [*header["equations"]["hidden"], header["equations"]["output"]]
    for place, layer in zip(rows, layers, strict=True):
        for term in layer["terms"]:
            k = _weight(term)
            W = _dense(tensors, f"learned.{k}", weights[k]["shape"])
            whole[place, columns[term["source"]]] += W
    return {"A": whole[:n, :n], "B": whole[:n, n:], "C": whole[n:, :n], "D": whole[n:, n:]}


def _dense(tensors: dict[str, np.ndarray], name: str, shape: Any) -> np.ndarray:
    if name in tensors:
        return tensors[name].astype(np.float64).reshape(shape)
    starts, columns, values = (tensors[f"{name}.{p}"] for p in ("indptr", "indices", "values"))
    matrix = np.zeros(shape)
    matrix[np.repeat(np.arange(shape[0]), np.diff(starts)), columns] = values
    return matrix
