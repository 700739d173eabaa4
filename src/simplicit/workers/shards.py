"""Pieces behind one another as one: what they answer is added up where they are worked on."""

from collections.abc import Iterable, Iterator
from itertools import islice
from math import ceil
from typing import TypeVar

MOST = 64
"""Sums that are sent back, at most. It does not depend on the workers, so neither do the bits."""

Piece = TypeVar("Piece")


def shards(pieces: Iterable[Piece], count: float) -> Iterator[list[Piece]]:
    """Put pieces together.

    Args:
        pieces: The pieces.
        count: How many there are, about.

    Yields:
        Some that follow one another, each time as many.
    """
    left, each = iter(pieces), max(ceil(count / MOST), 1)
    while shard := list(islice(left, each)):
        yield shard
