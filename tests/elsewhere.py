"""A device that is not the processor, pretended: tensors say `meta`, and the processor computes.

What a GPU refuses is refused here: an operation on tensors of both. What is made without a device
is the processor's, as with a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

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


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    packet = func._overloadpacket
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    away = any(isinstance(x, Away) for x in tensors)
    if away and packet not in COPIES:
        counted = tensors[:1] if packet in INDEXED else tensors
        here = [tuple(x.shape) for x in counted if not isinstance(x, Away) and x.ndim]
        if here:
            raise RuntimeError(f"{func}: a tensor of the processor, {here[0]}, beside another's")
    held_args, held = tree_map_only(Away, lambda x: x.held, (args, kwargs))
    asked = kwargs.get("device")
    if asked is not None and torch.device(asked) == DEVICE:
        held["device"] = torch.device("cpu")
    out = func(*held_args, **held)
    if packet is aten.copy_:
        return args[0]
    if not away and asked is None or asked is not None and torch.device(asked) != DEVICE:
        return out
    out = tree_map_only(Tensor, lambda x: x if isinstance(x, Away) else Away(x), out)
    return return_and_correct_aliasing(func, args, kwargs, out) if away else out


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        away = any(isinstance(x, Away) for x in tree_leaves((args, kwargs)))
        if away or asked is not None and torch.device(asked) == DEVICE:
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
