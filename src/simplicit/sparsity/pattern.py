"""Patterns of zeros: which weights of a row may go next, given those that are gone.

`eliminate` asks the pattern; `splitting` knows single weights only. A pattern such as 2:4 is one
class here: `removable` says how many weights it lets go, `open` which ones now.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Bool
from torch import Tensor


@runtime_checkable
class Pattern(Protocol):
    """Which weights may be zero together."""

    def removable(self, features: int) -> int:
        """Count the weights that a row may lose.

        Args:
            features: Weights of a row, the bias not counted.

        Returns:
            At most `features`.
        """
        ...

    def open(self, gone: Bool[Tensor, "K s"]) -> Bool[Tensor, "K s"] | None:
        """Say which weights may go next.

        Args:
            gone: Which weights of each row are gone, in the order of the row's features.

        Returns:
            True for those that may go, whether or not they are gone; None for all of them.
        """
        ...


class Unstructured:
    """Any weight may go: the pattern of a budget."""

    def removable(self, features: int) -> int:
        """Count the weights that a row may lose.

        Args:
            features: Weights of a row.

        Returns:
            All of them.
        """
        return features

    def open(self, gone: Bool[Tensor, "K s"]) -> None:
        """Let every weight go.

        Args:
            gone: Which weights are gone.
        """


UNSTRUCTURED = Unstructured()
"""Single weights."""
