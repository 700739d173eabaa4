"""simplicit: sparse, robust, certified implicit models from trained PyTorch networks.

model = simplicit.implicitize(net, calibration_inputs, sparsity=0.9)
model(u); model.sparsity; model.certificate; model.save("out"); simplicit.load("out")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from simplicit import _moved

__version__ = "0.1.0"

if TYPE_CHECKING:
    from simplicit.bounds.certify import certify
    from simplicit.bounds.verify import verify
    from simplicit.convex.gram import Gram
    from simplicit.convex.penalty import Ball, Penalty
    from simplicit.convex.problem import RowProblem
    from simplicit.convex.solution import Solution, Status
    from simplicit.errors import InputError
    from simplicit.fit import implicitize
    from simplicit.model.implicit import ImplicitModel
    from simplicit.model.saved import load
    from simplicit.refine.hold_zeros import hold_zeros
    from simplicit.runtime.compiled import compile
    from simplicit.solvers import solve
    from simplicit.solvers.estimator import CertifiedLasso

__all__ = [
    "Ball",
    "CertifiedLasso",
    "Gram",
    "ImplicitModel",
    "InputError",
    "Penalty",
    "RowProblem",
    "Solution",
    "Status",
    "certify",
    "compile",
    "hold_zeros",
    "implicitize",
    "load",
    "solve",
    "verify",
]

# imported when first used: `simplicit --version` does not wait for torch
_HOME = {
    "Ball": "convex.penalty",
    "CertifiedLasso": "solvers.estimator",
    "Gram": "convex.gram",
    "ImplicitModel": "model.implicit",
    "InputError": "errors",
    "Penalty": "convex.penalty",
    "RowProblem": "convex.problem",
    "Solution": "convex.solution",
    "Status": "convex.solution",
    "certify": "bounds.certify",
    "compile": "runtime.compiled",
    "hold_zeros": "refine.hold_zeros",
    "implicitize": "fit",
    "load": "model.saved",
    "solve": "solvers",
    "verify": "bounds.verify",
}
_MODULES = ("capture", "data", "equations", "explicit", "fit", "model", "recipe", "solvers")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"simplicit.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"simplicit.{name}")
    else:
        raise AttributeError(f"module 'simplicit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


_moved.install()
