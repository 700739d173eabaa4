"""The times of a run as sentences and as a table that the report shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from simplicit.lab.report.findings import percent
from simplicit.lab.results import read

Row = dict[str, Any]

TIMED = ("model", "way", "dense", "threads", "batch", "milliseconds")
"""Columns of `speed.csv` that are read."""


def faster(metrics: Sequence[Row]) -> list[str]:
    """Say how much faster each model is than the network it was made of.

    Args:
        metrics: Rows of `metrics.json`.

    Returns:
        A sentence a model that was timed.
    """
    said = []
    for row in metrics:
        times, own = (read.number(row.get(name)) for name in ("times_faster", "milliseconds"))
        if not times > 0:
            continue
        sentence = (
            f"{row['model']}: {1e3 * own:.3g} µs a sample ({row.get('way')}), "
            f"{times:.3g} times as fast as the fastest way of the explicit network"
        )
        if times < 1:
            sentence += "; it is slower here"
            least = read.number(row.get("pays_from"))
            if least > 0:
                sentence += f", and pays from a sparsity of {percent(least)}"
            elif "pays_from" in row:
                sentence += ", at every sparsity that was tried"
        said.append(f"{sentence}.")
    return said


def times(rows: Sequence[Mapping[str, str]]) -> Row:
    """Lay the times out: a line a model and way, a column a number of threads and batch size.

    Args:
        rows: Of `speed.csv`.

    Returns:
        `columns`, and `lines` with `model`, `way` and `cells` in microseconds a sample; empty if
        there are none.
    """
    timed = [row for row in rows if row["model"] != "explicit"] or list(rows)
    places = list(dict.fromkeys((row["threads"], row["batch"]) for row in timed))
    found: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for model in dict.fromkeys(row["model"] for row in timed):
        for row in (row for row in timed if row["model"] == model):
            name = f"explicit, beside {model}" if row["dense"] == "True" else model
            cell = found.setdefault((name, row["way"]), {})
            cell[row["threads"], row["batch"]] = float(f"{1e3 * float(row['milliseconds']):.3g}")
    if not found:
        return {}
    columns = [f"batch {batch}, {count} thread{'s' * (count != '1')}" for count, batch in places]
    lines = [
        {"model": model, "way": way, "cells": [cell.get(place) for place in places]}
        for (model, way), cell in found.items()
    ]
    return {"columns": columns, "lines": lines}
