"""A plan, and a model, as one column of numbers and a few records: the form of a checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.rows import Rows
from simplicit.equations.equation import Equation
from simplicit.matching.plan import Plan, Share


def plan_records(planned: Plan) -> tuple[Float[Tensor, "_ 1"], dict[str, Any]]:
    """Write a plan.

    Args:
        planned: The plan.

    Returns:
        How the outputs couple the rows, and all else.
    """
    flat = [share for groups in planned.shares for share in groups]
    records = {
        "price": planned.price,
        "penalty_factor": planned.penalty_factor,
        "coherence": planned.coherence,
        "rows": [len(share.coupling) for share in flat],
        "keep": [share.keep for share in flat],
        "quota": [share.quota for share in flat],
        "rank": [share.rank for share in flat],
        "factors": [share.factors for share in flat],
    }
    return torch.cat([share.coupling.flatten() for share in flat])[:, None], records


def plan_of(saved: tuple[Float[Tensor, "_ 1"], dict[str, Any]], layers: Sequence[Rows]) -> Plan:
    """Read a plan.

    Args:
        saved: What `plan_records` has written.
        layers: The rows that it is for.

    Returns:
        The plan.
    """
    coupling, records = saved
    names = ("rows", "keep", "quota", "rank", "factors")
    shares = list(zip(*(records[name] for name in names), strict=True))
    parts = coupling[:, 0].cpu().split([K * K for K, *_ in shares])
    flat = iter(Share(S.view(K, K), *others) for S, (K, *others) in zip(parts, shares, strict=True))
    groups = [[next(flat) for _ in range(rows.groups)] for rows in layers]
    return Plan(records["price"], records["penalty_factor"], groups, records["coherence"])


def numbers_of(model: Sequence[Equation]) -> Float[Tensor, "_"]:
    """Write all weights and full biases, one behind the other.

    Args:
        model: The equations.

    Returns:
        The numbers; zeros where an equation has no bias.
    """
    like = next(term.weight for e in model for term in e.terms)
    parts: list[Tensor] = []
    for e in model:
        parts += [term.weight.flatten() for term in e.terms]
        parts.append(like.new_zeros(e.size) if e.full_bias is None else e.full_bias)
    return torch.cat(parts)


def with_numbers(
    model: Sequence[Equation], numbers: Float[Tensor, "_"], biased: Sequence[bool]
) -> list[Equation]:
    """Put other weights and biases into equations.

    Args:
        model: The equations.
        numbers: As `numbers_of` writes them.
        biased: Which of the equations have a bias then.

    Returns:
        The equations with them. What is shared stays shared.
    """
    known: dict[int, Tensor] = {}
    found, left = [], numbers
    for e, has in zip(model, biased, strict=True):
        terms = []
        for term in e.terms:
            own, left = left[: term.weight.numel()], left[term.weight.numel() :]
            weight = known.setdefault(id(term.weight), own.view_as(term.weight).to(term.weight))
            terms.append(replace(term, map=replace(term.map, weight=weight)))
        bias, left = left[: e.size], left[e.size :]
        bias = bias.to(terms[0].weight if terms else e.bias) if has else None
        found.append(replace(e, terms=tuple(terms), bias=bias))
    return found
