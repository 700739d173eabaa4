"""A device that is not the processor, pretended: tensors say `meta`, and the processor computes.

What a GPU refuses is refused here: an operation on tensors of both. What is made without a device
is the processor's, as with a GPU. A Python list as an index is beyond it: torch reads such below.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

DEVICE = torch.device("meta")

aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_)
INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
"""Operations that take tensors of both; of those that index, only the indices may be elsewhere."""


class Away(Tensor):
    """A tensor of that device.

    Attributes:
        held: Its values.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Away":
        """Wrap values."""
        found = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        found.held = held
        return found

    def tolist(self) -> Any:
        """Fetch the values."""
        return self.held.tolist()

    # below the modes, torch takes `meta` at its word
    def new_tensor(self, data: Any, **options: Any) -> "Away":
        """Make another."""
        return Away(self.held.new_tensor(data, **options))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _changed(change: Callable[[Tensor], Tensor], some: Any) -> Any:
    """Change the tensors of nested lists and tuples, many times as fast as torch's own trees."""
    if isinstance(some, Tensor):
        return change(some)
    if isinstance(some, (list, tuple)):
        return type(some)([_changed(change, part) for part in some])
    return some


def _held(x: Tensor) -> Tensor:
    return x.held if isinstance(x, Away) else x


def _away(x: Tensor) -> Away:
    return x if isinstance(x, Away) else Away(x)


def _tensors(some: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _changed(lambda x: found.append(x) or x, some)
    return found


def _asked(options: dict[str, Any]) -> bool | None:
    """Whether the device is asked for; None if none is."""
    device = options.get("device")
    return None if device is None else torch.device(device) == DEVICE


def _compute(func: Any, args: Any, options: dict[str, Any]) -> Any:
    packet, asked = func._overloadpacket, _asked(options)
    tensors = _tensors([args, list(options.values())])
    away = any(isinstance(x, Away) for x in tensors)
    if away and packet not in COPIES:
        counted = tensors[:1] if packet in INDEXED else tensors
        here = [tuple(x.shape) for x in counted if not isinstance(x, Away) and x.ndim]
        if here:
            raise RuntimeError(f"{func}: a tensor of the processor, {here[0]}, beside another's")
    held = {name: _changed(_held, option) for name, option in options.items()}
    if asked:
        held["device"] = torch.device("cpu")
    out = func(*_changed(_held, args), **held)
    if packet is aten.copy_:
        return args[0]
    if asked is False or asked is None and not away:
        return out
    out = _changed(_away, out)
    return return_and_correct_aliasing(func, args, options, out) if away else out


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _asked(kwargs) or any(issubclass(kind, Away) for kind in types):
            return _compute(func, args, kwargs)
        return func(*args, **kwargs)


class _Numbers(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        asked = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and asked is not None:
            del kwargs["device"]
            return func(*args, **kwargs).to(asked)
        return func(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Have the device `meta` compute, in this thread."""
    with _Numbers(), _Operations():
        yield
