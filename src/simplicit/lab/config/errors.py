"""One line for a person out of pydantic's errors: the key, the value, what is accepted."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from simplicit.errors import did_you_mean, nearest

LONGEST = 60
"""Characters of a wrong value that are shown."""


def key(default: Any, meaning: str, accepted: str | tuple[str, ...], **constraints: Any) -> Any:
    """A key of the configuration: its default, its meaning, and what `explain` says is accepted.

    Args:
        default: The value where the file is silent.
        meaning: A short description.
        accepted: The accepted values in words, or the names of a choice.
        **constraints: Passed on to pydantic.

    Returns:
        The field.
    """
    words = accepted if isinstance(accepted, str) else ", ".join(accepted)
    extra: dict[str, Any] = {"accepted": accepted}
    return Field(
        default, description=f"{meaning} ({words})", json_schema_extra=extra, **constraints
    )


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Say the first thing that is wrong, and how many more keys are.

    Args:
        error: What the validation of `model` raised.
        model: The whole configuration: sections of keys, and keys of its own.

    Returns:
        One line, e.g. `implicit.kappa = 1.5: accepted is a number above 0 and below 1`.
    """
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] in ("extra_forbidden", "invalid_key"):
        line = _explain_unknown([str(part) for part in first["loc"]], model)
    else:
        line = _explain_value(first, model)
    more = len({each["loc"][:2] for each in errors}) - 1
    return line + (f" (and {more} more)" if more else "")


def dotted_keys(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Every key of a configuration with its dots, sections included.

    Args:
        model: The whole configuration.

    Yields:
        Pairs of `section.key` and its pydantic field.
    """
    for name, field in model.model_fields.items():
        yield name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for inner, inner_field in dotted_keys(field.annotation):
                yield f"{name}.{inner}", inner_field


def _explain_value(error: Any, model: type[BaseModel]) -> str:
    if reason := str(error.get("ctx", {}).get("error", "")):  # of a check across keys
        return reason
    fields = dict(dotted_keys(model))
    location = [str(part) for part in error["loc"]]
    depth = len(location)
    while ".".join(location[:depth]) not in fields:  # the entry of a list
        depth -= 1
    name = ".".join(location[:depth])
    value = repr(error["input"])
    if len(value) > LONGEST:
        value = value[:LONGEST] + "…"
    accepted = fields[name].json_schema_extra["accepted"]
    start = f"{name}{' =' if depth == len(location) else ', entry'} {value}: "
    if isinstance(accepted, str):
        return f"{start}accepted is {accepted}"
    return start + did_you_mean(str(error["input"]), accepted)


def _explain_unknown(location: list[str], model: type[BaseModel]) -> str:
    *section, name = location
    full = {key: key.split(".") for key, _ in dotted_keys(model)}
    siblings = [parts[-1] for parts in full.values() if parts[:-1] == section]
    near = nearest(name, siblings) or nearest(name, (parts[-1] for parts in full.values()))
    # the same name in another section is likelier meant than a similar one in this
    meant = [key for key, parts in full.items() if parts[-1] == name] or [
        key for key, parts in full.items() if parts[-1] == near
    ]
    accepted = f"did you mean {meant[0]}? Accepted" if meant else "accepted"
    where = f"in {'.'.join(section)}" if section else "at the top"
    return f"{'.'.join(location)}: unknown key; {accepted} {where} are {', '.join(siblings)}"
