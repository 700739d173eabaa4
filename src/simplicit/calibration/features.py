"""What the rows of a layer read in a block of inputs, as a matrix."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from simplicit.convex.products import square, times


@dataclass(frozen=True, eq=False)
class Listed:
    """Features as they are.

    Args:
        V: A row per sample and position, centred.
    """

    V: Float[Tensor, "groups samples d"]

    @property
    def samples(self) -> int:
        """Rows of the data."""
        return self.V.shape[1]

    def gram(self) -> Float[Tensor, "groups d d"]:
        """Multiply features.

        Returns:
            V'V.
        """
        return square(self.V.mT)

    def sum(self) -> Float[Tensor, "groups d"]:
        """Add up the rows of the data.

        Returns:
            The sums, taken in the features' precision, in float64.
        """
        return self.V.sum(1).double()

    def against(self, t: Float[Tensor, "groups samples K"]) -> Float[Tensor, "groups K d"]:
        """Multiply targets and features.

        Args:
            t: Targets.

        Returns:
            t'V.
        """
        return times(t.to(self.V).mT, self.V)

    def given(self, W: Float[Tensor, "groups K d"]) -> Float[Tensor, "groups samples K"]:
        """Predict.

        Args:
            W: Weights, in the order of the features.

        Returns:
            V W'.
        """
        return times(self.V, W.mT)

    def means(self, samples: int) -> "Listed":
        """Average over the positions of each sample.

        Args:
            samples: How many there are.

        Returns:
            Features with a row per sample.
        """
        return Listed(self.V.unflatten(1, (samples, -1)).mean(2))
