"""Every option is heard, or refused by its name: for every kind of network, whatever else is asked.

An option that changes nothing would be believed to have done something.
"""

from dataclasses import fields
from functools import cache
from typing import Any

import pytest

from kinds import NETWORKS, quick_fit, same
from shapes import unchecked
from simplicit.errors import InputError
from simplicit.fit import Fit
from simplicit.recipe import Recipe

OTHER: dict[str, tuple[Any, ...]] = {
    "objective": ("robustness", "sparsity"),
    "sparsity": (0.7,),
    "structure": ("full", "layered"),
    "kappa": (0.5, 0.1, 0.01),
    "constraint": ("row", "states"),
    "robustness": (0.9, 0.8, 0.2, 1e-9),
    "loss": ("squared", "root"),
    "bias": (False,),
    "support": ("relaxation", "elimination"),
    "sweeps": (4, 5, 6, 9),
    "relu_aware": (False,),
    "sensitivity": (False,),
    "closed_loop": (False,),
    "alpha": (3.0,),
    "lambda1": (0.7,),
    "sparsity_ratio": (30.0,),
    "l0": (2.0,),
    "l2": (2.0,),
    "tol": (0.5,),
    "skip": (("0",),),
    "rank": (1, 2, "auto"),
    "flops": (0.1, 0.7),
    "speedup": (1.5,),
    "pattern": ("1:2", "channels", "1:4", "2:4"),
    "blocks": ((2, 1), (1, 2)),
}
"""Values of every field: one of them must be heard, or refused. A new field needs one."""

BASES: dict[str, dict[str, Any]] = {
    "no budget": {},
    # without a number there are nine sweeps, which hear what four hear
    "a budget": {"sparsity": 0.5, "sweeps": 0},
    "a budget, swept": {"sparsity": 0.5, "sweeps": 4},
    "ranks": {"rank": 1},
    "ranks to a budget": {"rank": "auto", "sparsity": 0.4},
    "ranks and single weights": {"rank": 1, "sparsity": 0.2},
    "units": {"pattern": "channels", "flops": 0.5},
    "units, swept": {"pattern": "channels", "sparsity": 0.5, "sweeps": 4},
    "a budget, relaxed": {"sparsity": 0.5, "support": "relaxation"},
    "small rows": {"objective": "robustness", "lambda1": 10.0},
    # the other loss, whose path is a third as long, is in the small rows without a budget
    "small rows to a budget": {"objective": "robustness", "sparsity": 0.6, "loss": "squared"},
    "a level": {"objective": "robustness", "sparsity": 0.5, "sweeps": 4, "robustness": 0.001},
    "feedback": {"structure": "full"},
    "feedback to a budget": {"structure": "full", "sparsity": 0.5},
    "feedback of low rank": {"structure": "full", "rank": 1},
    "rows in a ball": {"constraint": "row"},
    "rows in a ball to a budget": {"constraint": "row", "sparsity": 0.5},
}
"""What else is asked for."""

EVERYWHERE = ("no budget", "a budget", "ranks to a budget", "units", "feedback")
"""What is asked for with every kind of network; the rest with matrices alone, since rows on a path
and in a ball are as others are, and sweeps are as after any budget."""


SLACK = {
    ("matrices", "kappa"): {"feedback to a budget"},
    ("matrices", "constraint"): {"small rows to a budget"},
    ("matrices", "closed_loop"): {"small rows to a budget"},
    ("convolutions", "sweeps"): {"a budget, swept"},
    **{(kind, "sensitivity"): {"units", "units, swept"} for kind in NETWORKS},
}
"""Where these small networks do not feel it: the ball's weights grow until the network fits, layers
that are reproduced exactly give the same states in both loops, the convolutions' live weights are
fewer than the budget, and a handful of units goes in the same order. Everywhere else another value
is felt."""


@cache
def answered(kind: str, recipe: Recipe) -> Fit | str:
    try:
        return quick_fit(kind, recipe)
    except InputError as error:
        return str(error)


def fitted(kind: str, options: dict[str, Any]) -> Fit | str:
    """The fit, or why it is refused; kept by recipe, which several options can give."""
    try:
        recipe = Recipe(**options)
    except InputError as error:
        return str(error)
    return answered(kind, recipe)


def refused_by_name(answer: str, options: dict[str, Any]) -> bool:
    return "\n" not in answer and any(
        answer.startswith((f"{name}=", f"{name}: ")) for name in options
    )


def differs(field: str, one: Fit, two: Fit) -> bool:
    # which weights are largest may be the same under a hundred penalties: the certificates are not
    certified = field in ("tol", "l0", "l2") and one.rows != two.rows
    return certified or not same(one.model, two.model)


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
@pytest.mark.parametrize("kind", NETWORKS)
def test_another_value_changes_the_model_or_is_refused_by_name(kind, field):
    silent = []
    for base, options in BASES.items():
        if base not in EVERYWHERE and kind != "matrices":
            continue
        with unchecked():
            before = fitted(kind, options)
        if isinstance(before, str):
            assert refused_by_name(before, options), before
            continue
        default = getattr(Recipe(), field)
        for value in OTHER[field]:
            if value == options.get(field, default):
                continue
            changed = options | {field: value}
            with unchecked():
                after = fitted(kind, changed)
            if isinstance(after, str):
                assert refused_by_name(after, changed), (base, after)
                break
            if differs(field, before, after):
                break
        else:
            silent.append(base)
    # a tolerance does nothing where rows are solved exactly at once
    exact = (
        set(BASES) - {"a budget, relaxed", "small rows to a budget"} if field == "tol" else set()
    )
    silent = set(silent) - exact - SLACK.get((kind, field), set())
    assert not silent, f"{field} changes nothing: {silent}"


def test_every_field_has_another_value():
    assert OTHER.keys() == {field.name for field in fields(Recipe)}
