"""The explicit network: built by name, trained, measured."""

from .by_name import build as build
from .by_name import load_weights as load_weights
from .training import accuracy as accuracy
from .training import train as train
