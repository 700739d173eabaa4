import math

import numpy as np
import pytest
import torch
from cases import PENALTIES, features, known, normal
from simplicit.errors import InputError
from simplicit.gram import Gram
from simplicit.problem import Penalty, RowProblem
from simplicit.solution import Solution, Status
from simplicit.solvers import loop, solve
from simplicit.solvers.admm import Admm
from simplicit.solvers.fista import Fista
from simplicit.solvers.scaled import Design, Scaled
from sklearn.linear_model import ElasticNet, Lasso, Ridge
from solver_suite import SolverSuite


class TestSolve(SolverSuite):
    """The solver as it is shipped: ADMM in float32, then Newton."""


class TestFistaNewton(SolverSuite):
    """The simple twin in ADMM's place."""

    patched = {"METHODS": (Fista(),)}
    hardest = 1.0


class FirstOrder(SolverSuite):
    """No Newton: the method must close the gap by itself."""

    tol = 1e-6
    max_iterations = 5000
    hardest = 0.5
    exact = False


class TestAdmm(FirstOrder):
    patched = {"METHODS": (Admm(dtype=torch.float64),), "NEWTON_ROUNDS": 0}


class TestFista(FirstOrder):
    patched = {"METHODS": (Fista(),), "NEWTON_ROUNDS": 0}
