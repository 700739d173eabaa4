"""A network as state equations z = Σ W (F s + c) + Σ G s + b, x = φ(z)."""

from .equation import BiasParameter as BiasParameter
from .equation import Equation as Equation
from .equation import Summand as Summand
from .equation import Term as Term
from .network import StateEquations as StateEquations
