"""Settings are checked where they are made."""

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from simplicit.errors import InputError
from simplicit.solvers import Settings

NUMBERS = [f.name for f in fields(Settings) if f.name != "methods"]
"""Of a whole number, NaN and infinity are wrong by its type already."""


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_no_stage_can_use_is_named(name):
    whole = isinstance(getattr(Settings(), name), int)
    wrong: tuple[Any, ...] = (-1,) if whole else (-1.0, math.nan, math.inf)
    for bad in wrong:
        with pytest.raises(InputError, match=rf"settings: {name}=.*; must be ") as caught:
            Settings(**{name: bad})
        assert "\n" not in str(caught.value)


def test_at_least_one_method_and_some_steps():
    with pytest.raises(InputError, match="methods is empty"):
        Settings(methods=())
    with pytest.raises(InputError, match="first_steps=1; must be at least 2"):
        Settings(first_steps=1)
    with pytest.raises(InputError, match="most_steps=16; must be at least 32"):
        Settings(most_steps=16)


def test_every_number_is_explained_and_frozen():
    assert all(f"        {f.name}: " in (Settings.__doc__ or "") for f in fields(Settings))
    with pytest.raises(FrozenInstanceError):
        Settings().tile = 3  # pyright: ignore
