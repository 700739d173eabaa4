"""Methods of the literature, to compare with: each takes a `Task` and a sparsity.

All return a new network of the same class with zeros in its weights; the one that came in is left
as it was. Unstructured methods leave exactly round((1 − s) N₀) of its N₀ non-zero weights;
structured ones remove whole neurons and channels and come as near as they can. Their names and
kinds are listed in `lab.methods`.
"""

from simplicit.lab.baselines.gmp import gmp
from simplicit.lab.baselines.magnitude import magnitude, random
from simplicit.lab.baselines.obs import obs
from simplicit.lab.baselines.robust import adversarial, decay, ibp
from simplicit.lab.baselines.spr import spr
from simplicit.lab.baselines.sss import sss
from simplicit.lab.baselines.tools.task import Task
from simplicit.lab.baselines.tools.weights import by_name
from simplicit.lab.baselines.wanda import wanda
from simplicit.lab.methods import BASELINES, Kind

__all__ = [
    "METHODS",
    "ONE_SHOT",
    "ROBUST",
    "TRAINED",
    "Task",
    "adversarial",
    "by_name",
    "decay",
    "gmp",
    "ibp",
    "magnitude",
    "obs",
    "random",
    "spr",
    "sss",
    "wanda",
]

METHODS = {name: globals()[name] for name in BASELINES}
"""The functions above by their names, in the order of `lab.methods.BASELINES`."""

ONE_SHOT = {n: f for n, f in METHODS.items() if BASELINES[n] is Kind.ONE_SHOT}
"""Methods that read unlabelled calibration inputs at most."""

ROBUST = {n: f for n, f in METHODS.items() if BASELINES[n] is Kind.ROBUST}
"""Methods that train on labels for robustness, on the weights that magnitude leaves; at sparsity 0
on all of them."""

TRAINED = {n: f for n, f in METHODS.items() if n not in ONE_SHOT and n not in ROBUST}
"""Methods that train on labels, within `Task.epochs` a training."""
