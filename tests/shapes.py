"""beartype, as pyproject.toml has jaxtyping use it on shapes: nothing is built or asked twice.

jaxtyping asks for two checks of a function: one of its arguments before the call; one of its
arguments and its result afterwards, with the axes still bound as the arguments have them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import config

# a whole number is a float, as in PEP 484
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_built: dict[object, Callable[..., Any]] = {}


def checked(empty: Callable[..., Any]) -> Callable[..., Any]:
    """A check of what a function that jaxtyping has emptied is annotated with.

    A function inside another is made anew, and asked for here, whenever the outer one runs. To
    build a check takes a millisecond, a hundred times as long as to run it.
    """
    annotations = empty.__annotations__
    key = empty.__module__, empty.__qualname__, empty.__code__, str(annotations)
    if key not in _built:
        if annotations.get("return", Any) is not Any:
            empty.__annotations__ = {"return": annotations["return"]}
        _built[key] = _check(empty)
    return _built[key]


@contextmanager
def unchecked() -> Iterator[None]:
    """No checks inside: for what runs hundreds of times, and elsewhere with checks."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)
