"""The ways through a model that an attacker can take the gradient of.

A model with feedback can be differentiated at its fixed point, by the implicit function theorem, or
through the iteration that finds it. Either gradient may mislead where the other does not, so a
model is as strong as against the worse of the two. Without feedback both are the one exact pass.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from simplicit.lab.evaluate.attacks import Predict
from simplicit.model.implicit import ImplicitModel

UNROLLED = 40
"""Picard steps that are differentiated."""


@dataclass
class Residuals:
    """Largest residual of any equilibrium on the way, `largest`."""

    largest: float = 0.0

    def see(self, residual: Tensor) -> None:
        """Take note of a batch."""
        self.largest = max(self.largest, float(residual.detach().max()))


@dataclass
class Judge:
    """A model as it is attacked and judged.

    Args:
        model: Any network that returns logits.
        residuals: Where those of the equilibria are noted.
    """

    model: nn.Module
    residuals: Residuals = field(default_factory=Residuals)

    def predict(self, u: Tensor) -> Tensor:
        """Predict at the converged fixed point; a sample without one has logits NaN.

        Returns:
            Logits, differentiable; NaN is never the right class.
        """
        if not isinstance(self.model, ImplicitModel) or self.model.structure != "full":
            return self.model(u)
        found = self.model.equilibrium(u)
        self.residuals.see(found.residual)
        return torch.where(found.converged[:, None], self._outputs(found.states, u), torch.nan)

    def unrolled(self, u: Tensor) -> Tensor:
        """Predict after `UNROLLED` Picard steps from zero, each of them differentiated.

        Returns:
            Logits.
        """
        assert isinstance(self.model, ImplicitModel)
        model = self.model
        (states,) = model.equations.hidden
        x = u.new_zeros(len(u), model.n)
        for _ in range(UNROLLED):
            x = states.phi(states.preactivation([x, u.flatten(1)]))
        return self._outputs(x, u)

    @property
    def routes(self) -> tuple[Predict, ...]:
        """What can be differentiated."""
        if isinstance(self.model, ImplicitModel) and self.model.structure == "full":
            return self.predict, self.unrolled
        return (self.predict,)

    def _outputs(self, x: Tensor, u: Tensor) -> Tensor:
        assert isinstance(self.model, ImplicitModel)
        return self.model.equations.output.preactivation([x, u.flatten(1)])
