"""Methods of the literature, to compare with: each takes a `Task` and a sparsity.

All return a new network of the same class with zeros in its weights; the one that came in is left
as it was. Unstructured methods leave exactly round((1 − s) N₀) of its N₀ non-zero weights;
structured ones remove whole neurons and channels and come as near as they can.
"""

from simplicit.lab.baselines.adversarial import adversarial
from simplicit.lab.baselines.decay import decay
from simplicit.lab.baselines.gmp import gmp
from simplicit.lab.baselines.ibp import ibp
from simplicit.lab.baselines.magnitude import magnitude
from simplicit.lab.baselines.obs import obs
from simplicit.lab.baselines.random_mask import random
from simplicit.lab.baselines.spr import spr
from simplicit.lab.baselines.sss import sss
from simplicit.lab.baselines.tools.task import Task
from simplicit.lab.baselines.tools.weights import by_name
from simplicit.lab.baselines.wanda import wanda

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
