"""beartype, as pyproject.toml has jaxtyping use it on shapes: often enough, and nothing twice.

jaxtyping asks for two checks of a function: one of its arguments before the call; one of its
arguments and its result afterwards, with the axes still bound as the arguments have them.

A check takes longer than many of the functions themselves, and a solver calls some of them a
hundred thousand times. So in each test the first `FIRST` calls of a function are checked, and then
every `STRIDE`-th. A wrong shape that only other calls have is missed.
"""

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import config, jaxtyped

# at which checks cost little beside the tests; twenty first calls cost a fifth of the time
FIRST, STRIDE = 5, 200

# a whole number is a float, as in PEP 484
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_built: dict[object, Callable[..., Any]] = {}
_calls: Counter[int] = Counter()


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


def sampled(function: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """jaxtyping's `jaxtyped`, for some of the calls; built when the first of them comes."""
    if function is None:
        return functools.partial(sampled, typechecker=typechecker)
    if inspect.isclass(function):  # a dataclass, by its constructor
        if is_dataclass(function) and not hasattr(function.__init__, "__wrapped__"):
            function.__init__ = sampled(function.__init__, typechecker=typechecker)
        return function
    if not function.__annotations__:  # nothing to check, as in what numba compiles
        return function
    # one count for all that are made of the same code; they hold it, and so its id stays its own
    code, every = id(function.__code__), None

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal every
        if config.jaxtyping_disable:
            return function(*args, **kwargs)
        number = _calls[code]
        _calls[code] = number + 1
        if number >= FIRST and number % STRIDE:
            return function(*args, **kwargs)
        if every is None:
            every = jaxtyped(function, typechecker=typechecker)
        return every(*args, **kwargs)

    return called


def pytest_runtest_setup() -> None:
    """Counts anew in each test: no other test has used its checks up."""
    _calls.clear()


pytest_runtest_call = pytest_runtest_setup


@contextmanager
def unchecked() -> Iterator[None]:
    """No checks inside: for what runs hundreds of times, and elsewhere with checks."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)
