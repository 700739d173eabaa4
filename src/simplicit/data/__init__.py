"""Datasets by name."""

from .datasets import DATASETS as DATASETS
from .datasets import Dataset as Dataset
from .datasets import is_file as is_file
from .datasets import load as load
from .datasets import sample as sample
