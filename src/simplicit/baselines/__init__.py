"""Methods of the literature, to compare with: each takes a `Task` and a sparsity.

All return a new network of the same class with zeros in its weights; the one that came in is left
as it was. Unstructured methods leave exactly round((1 − s) N₀) of its N₀ non-zero weights;
structured ones remove whole neurons and channels and come as near as they can.
"""

from .adversarial import adversarial
from .decay import decay
from .gmp import gmp
from .ibp import ibp
from .magnitude import magnitude
from .obs import obs
from .random import random
from .spr import spr
from .sss import sss
from .task import Task
from .wanda import wanda
from .weights import by_name

__all__ = [
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

ONE_SHOT = {"random": random, "magnitude": magnitude, "wanda": wanda, "obs": obs}
"""Methods that read unlabelled calibration inputs at most."""

TRAINED = {"gmp": gmp, "sss": sss, "spr": spr}
"""Methods that train on labels, within `Task.epochs` a training."""

ROBUST = {"adversarial": adversarial, "ibp": ibp, "decay": decay}
"""Methods that train on labels for robustness, on the weights that magnitude leaves; at sparsity 0
on all of them."""
