"""The units that a model has left, as a table that the report shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from simplicit.lab.results import read

Row = dict[str, Any]

COUNTS = ("channels_before", "channels", "products_before", "products")
CHANNELS = ("layer", *COUNTS)
"""Columns of `units.csv` that are read."""


def units(rows: Sequence[Mapping[str, str]], names: Mapping[str, str]) -> list[Row]:
    """Average over the seeds, layer by layer, and add the multiply-adds of all layers up.

    Args:
        rows: Of `units.csv`.
        names: What layers are called on the page, where that is not their name.

    Returns:
        A line a layer with `layer` and the four counts, and one of all layers, without channels;
        none if there are no rows.
    """
    found: list[Row] = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        own = [row for row in rows if row["layer"] == layer]
        means = {name: sum(read.number(row[name]) for row in own) / len(own) for name in COUNTS}
        found.append({"layer": names.get(layer, layer), **means})
    if found:
        whole = {name: sum(line[name] for line in found) for name in COUNTS[2:]}
        found.append({"layer": "all", **whole})
    return found
