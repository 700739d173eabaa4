"""simplicit: sparse, robust, certified implicit models from trained PyTorch networks.

model = simplicit.implicitize(net, calibration_inputs, sparsity=0.9)
model(u); model.sparsity; model.certificate; model.save("out"); simplicit.load("out")
"""

__version__ = "0.1.0"

from .archive import load
from .certify import certify
from .errors import InputError
from .estimator import CertifiedLasso
from .fit import implicitize
from .gram import Gram
from .model import ImplicitModel
from .penalty import Ball, Penalty
from .problem import RowProblem
from .solution import Solution, Status
from .solvers import solve

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
    "implicitize",
    "load",
    "solve",
]
