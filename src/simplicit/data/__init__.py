"""Datasets by name."""

from .datasets import DATASETS, Dataset, is_file, load, sample
