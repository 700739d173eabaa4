"""The explicit network: built by name, trained, measured."""

from simplicit.explicit.by_name import build, load_weights
from simplicit.explicit.training import accuracy, suited, train

__all__ = ["accuracy", "build", "load_weights", "suited", "train"]
