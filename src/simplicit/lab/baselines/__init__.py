"""Methods of the literature, to compare with: each takes a `Task` and a sparsity.

All return a new network of the same class; the one that came in is left as it was. Unstructured
methods leave exactly round((1 − s) N₀) of its N₀ non-zero weights. `sss` and `spr` set whole
neurons and channels to zero, `channels_*` make layers smaller, `svd*` put two layers in place of
one: they come as near as they can. Their names and kinds are listed in `lab.methods`.
"""

from simplicit.lab.baselines.channels import channels_bn, channels_l1, channels_taylor
from simplicit.lab.baselines.gmp import gmp
from simplicit.lab.baselines.low_rank import svd, svd_whitened
from simplicit.lab.baselines.magnitude import magnitude, random
from simplicit.lab.baselines.nm import sparsegpt_nm, wanda_nm
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
    "SHAPED",
    "TRAINED",
    "Task",
    "adversarial",
    "by_name",
    "channels_bn",
    "channels_l1",
    "channels_taylor",
    "decay",
    "gmp",
    "ibp",
    "magnitude",
    "obs",
    "random",
    "sparsegpt_nm",
    "spr",
    "sss",
    "svd",
    "svd_whitened",
    "wanda",
    "wanda_nm",
]

METHODS = {name: globals()[name] for name in BASELINES}
"""The functions above by their names, in the order of `lab.methods.BASELINES`."""

ONE_SHOT = {n: f for n, f in METHODS.items() if BASELINES[n] is Kind.ONE_SHOT}
"""Methods for single weights that read unlabelled calibration inputs at most."""

SHAPED = {n: f for n, f in METHODS.items() if n not in ONE_SHOT and not BASELINES[n].trains}
"""Methods that read no more, and keep channels, groups of weights or a rank."""

ROBUST = {n: f for n, f in METHODS.items() if BASELINES[n] is Kind.ROBUST}
"""Methods that train on labels for robustness, on the weights that magnitude leaves; at sparsity 0
on all of them."""

TRAINED = {n: f for n, f in METHODS.items() if BASELINES[n].trains and n not in ROBUST}
"""Methods that train on labels, within `Task.epochs` a training."""
