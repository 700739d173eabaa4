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

from jaxtyping import Float
from torch import Tensor

Inputs = Float[Tensor, "m p"]
States = Float[Tensor, "m n"]
Outputs = Float[Tensor, "m q"]
PerSample = Float[Tensor, "m"]
