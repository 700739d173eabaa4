"""The papers' letters and their shapes, written once (samples are rows).

| letter | meaning |
|---|---|
| m | samples |
| p | inputs, flattened |
| n | states: hidden units of all layers, last hidden layer first |
| q | outputs |
| N | features of a row problem (states and inputs a row may use) |
| K | rows solved together |
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Inputs = Float[Tensor, "m p"]
States = Float[Tensor, "m n"]
Outputs = Float[Tensor, "m q"]

Features = Float[Tensor, "m N"]
Targets = Float[Tensor, "m K"]
GramMatrix = Float[Tensor, "N N"]
CrossMoments = Float[Tensor, "K N"]
Weights = Float[Tensor, "K N"]
Support = Bool[Tensor, "K N"]
PerFeature = Float[Tensor, "N"]
PerRow = Float[Tensor, "K"]
RowCounts = Int[Tensor, "K"]
PerSample = Float[Tensor, "m"]
