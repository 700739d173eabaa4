"""The methods that a run compares, and the kind of each: the one list, read without torch.

The configuration, the runs, the figures and the report take names and kinds from here. A new
method is a line here and a function of the same name in `baselines`.
"""

from collections.abc import Mapping
from enum import StrEnum


class Kind(StrEnum):
    """The data and the training that a method uses; only methods of one kind compete."""

    ONE_SHOT = "one-shot, no labels, no training"
    CHANNELS = "one-shot, no labels, no training, whole neurons and channels removed"
    GROUPS = "one-shot, no labels, no training, n of every m weights"
    LOW_RANK = "one-shot, no labels, no training, low rank"
    DISTILLED = "trained on the explicit network's outputs, no labels"
    TRAINED = "trained on labels"
    STRUCTURED = "trained on labels, whole neurons and channels removed"
    ROBUST = "trained on labels, for robustness"

    @property
    def trains(self) -> bool:
        """Whether weights are trained by gradients."""
        return self.startswith("trained")


BASELINES: Mapping[str, Kind] = {
    "random": Kind.ONE_SHOT,
    "magnitude": Kind.ONE_SHOT,
    "wanda": Kind.ONE_SHOT,
    "obs": Kind.ONE_SHOT,
    "channels_l1": Kind.CHANNELS,
    "channels_bn": Kind.CHANNELS,
    "channels_taylor": Kind.CHANNELS,
    "wanda_nm": Kind.GROUPS,
    "sparsegpt_nm": Kind.GROUPS,
    "svd": Kind.LOW_RANK,
    "svd_whitened": Kind.LOW_RANK,
    "gmp": Kind.TRAINED,
    "sss": Kind.STRUCTURED,
    "spr": Kind.STRUCTURED,
    "adversarial": Kind.ROBUST,
    "ibp": Kind.ROBUST,
    "decay": Kind.ROBUST,
}
"""Methods of the literature: each is a function of `baselines` and prunes the explicit network."""

KINDS: Mapping[str, Kind] = {"implicit": Kind.ONE_SHOT, "finetuned": Kind.DISTILLED, **BASELINES}
"""Every model that a run makes of the explicit network."""

MODELS = ("explicit", "implicit", *BASELINES)
"""The models that `evaluation.baselines` accepts."""


def prunes(model: str) -> bool:
    """Say whether a model needs a sparsity to be pruned to.

    Args:
        model: One of `MODELS`.

    Returns:
        False for the two networks, and for robust training, which can also leave all weights.
    """
    return BASELINES.get(model, Kind.ROBUST) is not Kind.ROBUST
