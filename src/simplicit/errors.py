"""The exceptions a user sees: a line that names what is wrong and what would be accepted.

Where a name is wrong, the line ends with the nearest one that is accepted.
"""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 20
"""Names listed at most."""


class InputError(ValueError):
    """Bad input from outside: configuration, data, files, networks, arguments.

    The message is one line that names the offending thing and what would be accepted.
    The command line prints it and exits with code 2.
    """


class WorkerError(RuntimeError):
    """A piece of work that ends whatever worker takes it.

    The message is one line that names the piece and says what may help. The command line prints it
    and exits with code 1; what is finished is kept.
    """


def nearest(name: str, accepted: Iterable[str]) -> str | None:
    """The accepted name most like `name`, upper and lower case alike; None if nothing is close.

    Args:
        name: What was typed.
        accepted: The names that would do.

    Returns:
        One of `accepted`, or None.

    >>> nearest("adam", ["SGD", "Adam"])
    'Adam'
    >>> nearest("structur", ["kappa", "structure"])
    'structure'
    """
    by_lower = {candidate.lower(): candidate for candidate in accepted}
    matches = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: str, accepted: Iterable[str]) -> str:
    """The end of an error line: a suggestion where one is close, then the accepted names.

    Args:
        name: What was typed.
        accepted: The names that would do, in the order to show.

    Returns:
        E.g. `did you mean Adam? Accepted are SGD, Adam`.

    >>> did_you_mean("adam", ["SGD", "Adam"])
    'did you mean Adam? Accepted are SGD, Adam'
    """
    accepted = list(accepted)
    suggestion = nearest(name, accepted)
    start = f"did you mean {suggestion}? Accepted are " if suggestion else "accepted are "
    end = ", …" if len(accepted) > LONGEST else ""
    return start + (", ".join(accepted[:LONGEST]) or "none") + end
