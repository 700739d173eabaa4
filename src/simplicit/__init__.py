"""simplicit: sparse, robust, certified implicit models from trained PyTorch networks."""

__version__ = "0.1.0"
