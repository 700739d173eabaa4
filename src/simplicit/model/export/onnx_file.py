"""A model as an ONNX file, which is kept only if ONNX Runtime predicts what the model predicts.

A matrix of the model is a tensor of the file with the same zeros. ONNX has no sparse layout that
runtimes read, so zeros take bytes; compression takes them out again.
"""

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.capture.outputs import tensors_of
from simplicit.equations.interface import parted
from simplicit.equations.network import StateEquations
from simplicit.equations.operators import BlockOperator
from simplicit.errors import InputError
from simplicit.model.equilibrium import iterated
from simplicit.model.export.onnx_graph import traced
from simplicit.model.export.onnx_loop import looped
from simplicit.model.fixed_point import MAX_STEPS, TOLERANCE
from simplicit.model.into_network import apart, outputs_of, some_inputs
from simplicit.system.extras import package
from simplicit.system.files import replace_with

CLOSE = 1e-5
"""Largest difference of outputs, relative to the largest entry of the same output, or to 1."""

LARGEST = 2**31 - 2**24
"""Bytes of weights that one file can hold: protobuf ends at 2 GiB, the graph takes the rest."""


def write_onnx(
    equations: StateEquations,
    path: Path,
    *,
    tol: float | None = None,
    max_steps: int = MAX_STEPS,
) -> None:
    """Write a network as an ONNX file for any number of samples.

    Args:
        equations: The network.
        path: The file; its folder is made if need be.
        tol: Of the loop of equations with feedback: largest accepted residual, by default that of
            the dtype.
        max_steps: Of the loop: largest number of evaluations of φ(Ax + Bu + b).

    Raises:
        InputError: If the extra `onnx` is missing, an operation has no ONNX form, ONNX Runtime
            predicts something else, or the file cannot be written; then nothing is left behind.
    """
    onnx = package("onnx")
    if not equations.feedback and (tol, max_steps) != (None, MAX_STEPS):
        raise InputError("to_onnx: tol and max_steps are accepted for structure 'full' only")
    equations = _as_computed(equations)
    tol = TOLERANCE[equations.like.dtype] if tol is None else tol
    if not tol > 0 or max_steps < 1:
        raise InputError(f"tol {tol}, max_steps {max_steps}: accepted are tol > 0, max_steps >= 1")
    weights = {id(term.weight): term.weight for e in equations.layers for term in e.terms}
    if (size := sum(weight.nbytes for weight in weights.values())) > LARGEST:
        raise InputError(f"to_onnx: {size} bytes of weights; accepted are {LARGEST}, as one file")
    with torch.no_grad():
        if equations.feedback:
            written = looped(equations, tol, max_steps)
        else:
            written = traced(equations)
        onnx.checker.check_model(written)
        payload = written.SerializeToString()
        if find_spec("onnxruntime") is not None:
            _require_same(equations, payload, tol, max_steps)
    try:
        with replace_with(path) as temporary, temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{path}: cannot write the model ({error.strerror})") from None


def session(written: bytes) -> Any:
    """Load an ONNX file into ONNX Runtime, on the processor and torch's number of threads.

    Args:
        written: The file.

    Returns:
        The `onnxruntime.InferenceSession`. If the package is missing that is an `InputError`.
    """
    runtime: Any = package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, torch.get_num_threads()
    return runtime.InferenceSession(written, options, providers=["CPUExecutionProvider"])


# on the processor, and in the dtype of the weights: the model of a bfloat16 network has float32
def _as_computed(equations: StateEquations) -> StateEquations:
    equations = equations.changed(lambda tensor: tensor.detach().cpu())
    if equations.interface is None:
        return equations
    return replace(equations, interface=replace(equations.interface, dtype=""))


def _require_same(equations: StateEquations, payload: bytes, tol: float, max_steps: int) -> None:
    u = some_inputs(equations).to(equations.like)
    expected, allowed = _expected(equations, u, tol, max_steps)
    each = (len(u), 1)  # any number of samples
    for m, found in zip(each, _runs(equations, payload, [u[:m] for m in each]), strict=True):
        wanted = [part[:m] for part in expected]
        nans = [part.isnan() for part in wanted]
        alike = all(map(torch.equal, nans, [part.isnan() for part in found]))
        difference = apart([y.nan_to_num() for y in found], [y.nan_to_num() for y in wanted])
        if not (alike and difference <= allowed):
            raise InputError(
                f"to_onnx: ONNX Runtime's outputs differ by {difference:.1e} of their size; "
                f"accepted is {allowed:.1e}, so no file is written"
            )


# what the model returns, and how far from it an export may be
def _expected(
    equations: StateEquations, u: Float[Tensor, "m p"], tol: float, max_steps: int
) -> tuple[list[Tensor], float]:
    if not equations.feedback:
        return outputs_of(equations, u), CLOSE
    found = iterated(equations, u, method="picard", tol=tol, max_steps=max_steps)
    states = found.states.masked_fill(~found.converged[:, None], torch.nan)
    y, interface = equations.output.preactivation([states, u]), equations.interface
    returned = y if interface is None else interface.returned(y)
    # rounding may stop one of two iterations a step before the other: tol in the states
    size = max(1.0, float(states.nan_to_num().abs().max()))
    C = BlockOperator(equations, "C").to_dense()
    return list(tensors_of(returned).values()), CLOSE + tol * size * float(C.abs().sum(1).max())


def _runs(
    equations: StateEquations, payload: bytes, batches: list[Float[Tensor, "_ p"]]
) -> list[list[Tensor]]:
    runs = []
    try:
        running = session(payload)
        names = [given.name for given in running.get_inputs()]
        for u in batches:
            values = [part.numpy() for part in parted(equations.inputs, u)]
            found = running.run(None, dict(zip(names, values, strict=True)))
            runs.append([torch.from_numpy(y) for y in found])
    except Exception as error:  # its exceptions have no common class
        reason = str(error).strip().splitlines()[0]
        double = equations.like.dtype == torch.float64
        other = "; accepted is model.cast(torch.float32)" if double else ""
        raise InputError(f"to_onnx: ONNX Runtime cannot run it ({reason}){other}") from None
    return runs
