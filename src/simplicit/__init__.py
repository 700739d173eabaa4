"""simplicit: sparse, robust, certified implicit models from trained PyTorch networks.

model = simplicit.implicitize(net, calibration_inputs, sparsity=0.9)
model(u); model.sparsity; model.certificate; model.save("out"); simplicit.load("out")
"""

__version__ = "0.1.0"

from simplicit.bounds.certify import certify
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.convex.solution import Solution, Status
from simplicit.errors import InputError
from simplicit.fit import implicitize
from simplicit.model.implicit import ImplicitModel
from simplicit.model.saved import load
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
    "implicitize",
    "load",
    "solve",
]
