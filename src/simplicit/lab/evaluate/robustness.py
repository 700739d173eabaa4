"""Clean, attacked and certified accuracy of a model at several radii, as rows of a table."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from simplicit.bounds.certify import as_model, certify
from simplicit.bounds.lipschitz import sensitivity_matrix
from simplicit.lab.evaluate import corruptions, external
from simplicit.lab.evaluate.attacks import Predict, fgsm, pgd, relaxation, right
from simplicit.lab.evaluate.routes import Judge
from simplicit.model.implicit import ImplicitModel

Attack = Literal[
    "fgsm",
    "pgd",
    "pgd-100",
    "pgd-l2",
    "relaxation",
    "transfer",
    "corners",
    "brightness",
    "gaussian",
    "blur",
    "autoattack",
    "foolbox",
]
ATTACKS: tuple[Attack, ...] = get_args(Attack)
"""What `evaluation.attacks` accepts."""

INSIDE = {
    "fgsm", "pgd", "pgd-100", "relaxation", "transfer", "corners", "brightness", "autoattack",
    "foolbox",
}  # fmt: skip
"""Attacks that stay in the l∞ ball: none may change the class of a sample certified there."""

BLIND = {"corners", "brightness", "gaussian", "blur"}
"""Those that do not look at the model."""

BOUNDS = (0.0, 1.0)
"""Images have values in here, and so have attacked ones; certificates do not need it."""

CONFIDENCE = 0.95
"""Of the binomial intervals (Wilson)."""

EXAMPLES = 6
"""Attacked images that are shown."""

Row = dict[str, Any]


def evaluate(
    model: nn.Module,
    u: Float[Tensor, "m *shape"],
    y: Int[Tensor, "m"],
    radii: Sequence[float],
    attacks: Sequence[Attack],
    *,
    source: nn.Module | None = None,
    seed: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> list[Row]:
    """Attack and certify a model.

    Everything is done in float64, so that no rounding of an attack is taken for a violation. A
    model with feedback is attacked through its fixed point and through the unrolled iteration; a
    sample counts as right only if both leave it so.

    Args:
        model: Any model or network that is certifiable.
        u: Images in [0, 1].
        y: Their classes.
        radii: Radii eps, in the units of u.
        attacks: Which. `pgd-l2` has the radius eps √p; `transfer` climbs the gradients of `source`.
        source: The network that `transfer` attacks instead; the model itself when omitted.
        seed: Of everything random.
        progress: Called after each part with the part of the work it was.

    Returns:
        One row per attack and radius, and per bound and radius: `attack`, `eps`, `samples`,
        `accuracy` with its binomial interval `low` and `high`, `seconds` of all samples,
        `residual` the largest of any equilibrium, `violations` of a certificate and, of bounds,
        the `mean_radius`.
    """
    judge = Judge(_double(model))
    other = Judge(_double(source or model))
    u = u.double()
    rows, total = [], 2 + len(attacks)
    clean, seconds = _timed(lambda: right(judge.predict, u, y))
    rows += [_row("clean", eps, clean, seconds, judge) for eps in radii]
    radius = torch.zeros(len(y), dtype=torch.float64)
    for method in bounds_of(model):
        found, seconds = _timed(lambda m=method: certify(model, u, y, 0.01, methods=[m]).radius)
        radius = torch.maximum(radius, found)
        rows += [_certified(method, eps, found, seconds) for eps in radii]
    rows += [_certified("certified", eps, radius, 0.0) for eps in radii]
    progress(2 / total)
    for attack in attacks:
        for eps in radii:
            judge.residuals.largest = 0.0
            stays, seconds = _timed(
                lambda a=attack, e=eps: clean & _survive(a, judge, other, u, y, e, seed)
            )
            proved = (radius >= eps) & (radius > 0)
            broken = int((proved & ~stays).sum()) if attack in INSIDE else 0
            row = _row(attack, eps, stays, seconds, judge)
            rows.append(row | {"violations": broken})
        progress(1 / total)
    return rows


def shown(
    model: nn.Module,
    u: Float[Tensor, "m *shape"],
    y: Int[Tensor, "m"],
    radii: Sequence[float],
    *,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Collect what figures show of a model.

    Args:
        model: Any model or network that is certifiable.
        u: Images in [0, 1], at least one.
        y: Their classes.
        radii: Radii of the examples; those of 0 are passed over.
        seed: Of the attack.

    Returns:
        `sensitivity` (q, p); for the first `EXAMPLES` samples `inputs`, `labels`, and for each
        radius what PGD makes of them, `attacked` (radii, samples, *shape), and the classes that
        gives, `predicted` (radii, samples), with the `radii`.
    """
    judge, u, y = Judge(_double(model)), u[:EXAMPLES].double(), y[:EXAMPLES]
    radii = [eps for eps in radii if eps > 0] or [0.0]
    attacked = torch.stack([pgd(judge.predict, u, y, eps, BOUNDS, seed=seed) for eps in radii])
    predicted = torch.stack([judge.predict(v).argmax(1) for v in attacked])
    return {
        "sensitivity": sensitivity_matrix(as_model(model, u.float())),
        "inputs": u,
        "labels": y.clone(),
        "attacked": attacked,
        "predicted": predicted,
        "radii": torch.tensor(radii, dtype=torch.float64),
    }


def bounds_of(model: nn.Module) -> tuple[str, ...]:
    """List the bounds that differ for a model.

    Args:
        model: Any model.

    Returns:
        Names of methods of `certify`; plain intervals are mixed-monotone without feedback.
    """
    full = isinstance(model, ImplicitModel) and model.structure == "full"
    return ("lipschitz", "interval", *(["mixed-monotone"] if full else []), "linear")


# which samples keep their class, whichever way the gradient is taken
def _survive(
    attack: Attack, judge: Judge, other: Judge, u: Tensor, y: Tensor, eps: float, seed: int
) -> Bool[Tensor, "m"]:
    stays = torch.ones(len(y), dtype=torch.bool)
    if attack == "relaxation":
        return right(judge.predict, relaxation(as_model(judge.model, u), u, y, eps, BOUNDS), y)
    routes = other.routes if attack == "transfer" else judge.routes
    for route in routes[:1] if attack in BLIND else routes:
        stays &= right(judge.predict, _move(attack, route, u, y, eps, seed), y)
    return stays


def _move(attack: Attack, route: Predict, u: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    match attack:
        case "fgsm":
            return fgsm(route, u, y, eps, BOUNDS)
        case "pgd" | "transfer":
            return pgd(route, u, y, eps, BOUNDS, seed=seed)
        case "pgd-100":
            return pgd(route, u, y, eps, BOUNDS, steps=100, seed=seed)
        case "pgd-l2":
            return pgd(route, u, y, eps * u[0].numel() ** 0.5, BOUNDS, norm="l2", seed=seed)
        case "corners":
            return corruptions.corners(u, eps, BOUNDS, seed)
        case "brightness":
            return corruptions.brightness(u, eps, BOUNDS)
        case "gaussian":
            return corruptions.gaussian(u, eps, BOUNDS, seed)
        case "blur":
            return corruptions.blur(u, eps)
        case "autoattack":
            moved = external.autoattack(route, u, y, eps, seed=seed)
        case "foolbox":
            moved = external.foolbox_pgd(route, u, y, eps)
    # they compute in float32, and may be outside the ball by its rounding
    return torch.minimum(torch.maximum(moved, u - eps), u + eps)


def _row(attack: str, eps: float, stays: Tensor, seconds: float, judge: Judge) -> Row:
    return {
        "attack": attack,
        "eps": eps,
        **share(int(stays.sum()), len(stays)),
        "seconds": seconds,
        "residual": judge.residuals.largest,
        "violations": 0,
        "mean_radius": None,
    }


def _certified(method: str, eps: float, radius: Tensor, seconds: float) -> Row:
    proved = (radius >= eps) & (radius > 0)
    return {
        "attack": method,
        "eps": eps,
        **share(int(proved.sum()), len(proved)),
        "seconds": seconds,
        "residual": 0.0,
        "violations": 0,
        "mean_radius": float(radius.mean()),
    }


def share(count: int, total: int) -> Row:
    """Estimate a probability from a count.

    Args:
        count: Samples that are right.
        total: Samples, at least 1.

    Returns:
        `samples`, `accuracy`, and Wilson's interval `low`, `high`.
    """
    from scipy.stats import binomtest  # half a second that reading a configuration need not wait

    interval = binomtest(count, total).proportion_ci(CONFIDENCE, "wilson")
    low, high = float(interval.low), float(interval.high)
    return {"samples": total, "accuracy": count / total, "low": low, "high": high}


def _double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).cpu().double().eval().requires_grad_(False)


def _timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    begin = time.monotonic()
    return work(), time.monotonic() - begin
