"""Anything as a short pickle and its tensors apart: these are lent, mapped or kept as plain bytes.

A tensor keeps its strides and where it begins in a line of the cache: the last bits of a product
may depend on both.
"""

import hashlib
import io
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LINE = 64
"""Bytes: torch's own memory begins at multiples of it."""

TOLD = 2**20
"""Bytes up to which a tensor is told from others by its content; by a sum and some words beyond."""

SOME = 61
"""Of so many words of a large tensor one is looked at by itself: another order has the same sum."""


@dataclass(frozen=True, eq=False)
class Held:
    """Bytes in memory, from a multiple of `LINE` on; so is a copy in another process.

    Attributes:
        bytes: As numbers.
    """

    bytes: Tensor

    def __len__(self) -> int:
        return len(self.bytes)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        content = self.bytes.numpy()
        # processes are sent pickles of protocol 4
        return Held.of, (pickle.PickleBuffer(content.data) if protocol >= 5 else content.tobytes(),)

    @classmethod
    def of(cls, content: Any) -> "Held":
        """Copy bytes.

        Args:
            content: Anything that has a buffer.

        Returns:
            The copy.
        """
        array = np.frombuffer(content, np.uint8)
        held = torch.empty(len(array), dtype=torch.uint8)
        held.numpy()[:] = array
        return cls(held)


@dataclass(frozen=True)
class Mapped:
    """Bytes in a file, which all processes of a machine have in memory once.

    Attributes:
        path: The file.
    """

    path: str

    @property
    def bytes(self) -> Tensor:
        """As numbers; a change stays with the process that makes it."""
        return torch.from_numpy(np.memmap(self.path, np.uint8, mode="c"))


class Passing:
    """What is another one in every attempt at the same work, such as a clock."""


@dataclass(frozen=True)
class _View:
    """How a tensor lies in some bytes: of which, and from which on."""

    place: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int
    device: str
    is_parameter: bool
    learns: bool


OWN, HARMLESS = "simplicit.", {"set", "frozenset", "slice", "range", "complex", "bytearray"}
ALLOWED = {("torch", "Size"), ("collections", "OrderedDict")}
"""Of what an answer may consist that comes from a file."""

Lend = Callable[[Tensor, Tensor], Any]
"""Makes of a tensor, and of the bytes that it lies in, what goes into a pack in their place."""


@dataclass(frozen=True, eq=False)
class Pack:
    """A short pickle, and what its tensors lie in.

    Attributes:
        pickled: All but the tensors.
        parts: `Held`, `Mapped`, or what becomes one of them on its way.
    """

    pickled: bytes
    parts: list[Any]


def hold(_: Tensor, content: Tensor) -> Held:
    """Keep bytes as they are.

    Args:
        _: The tensor, which is not looked at.
        content: Its bytes.

    Returns:
        These.
    """
    return Held(content)


def pack(thing: Any, lend: Lend = hold) -> Pack:
    """Take something apart.

    Args:
        thing: Anything that can be pickled.
        lend: What is done with the bytes of tensors.

    Returns:
        Its parts.
    """
    file, parts = io.BytesIO(), []
    _Pickler(file, lend, parts).dump(thing)
    return Pack(file.getvalue(), parts)


def unpack(packed: Pack, careful: bool = False) -> Any:
    """Put something together again.

    Args:
        packed: Its parts; tensors lie in their bytes, without a copy.
        careful: Whether a file may be from anyone: then it names classes of simplicit alone, and
            calls no function.

    Returns:
        The thing.
    """
    kind = _Careful if careful else _Unpickler
    return kind(io.BytesIO(packed.pickled), packed.parts).load()


def fingerprint(thing: Any) -> bytes:
    """Tell a thing from others, without reading large tensors more than once.

    Args:
        thing: Anything that can be pickled; what is `Passing` in it does not count.

    Returns:
        16 bytes.
    """
    file, parts = io.BytesIO(), []
    _Lasting(file, hold, parts).dump(thing)
    found = hashlib.blake2b(file.getvalue(), digest_size=16)
    for part in parts:
        if len(part) <= TOLD:
            found.update(part.bytes.numpy())
        else:
            # views of NumPy's may begin anywhere; sums of torch's, which wrap, take less time
            words = torch.from_numpy(part.bytes.numpy()[: len(part) // 8 * 8].view(np.int64))
            found.update(repr([len(part), int(words.sum())]).encode())
            found.update(words[::SOME].numpy().tobytes())
    return found.digest()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, lend: Lend, parts: list[Any]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._lend, self._parts = lend, parts

    def persistent_id(self, obj: Any) -> _View | None:
        plain = type(obj) in (Tensor, nn.Parameter) and obj.layout is torch.strided
        if not plain or obj.is_conj() or obj.is_neg():
            return None
        x = obj.detach()
        x = x if x.device.type == "cpu" else x.cpu()
        content, first = _content(x)
        self._parts.append(self._lend(x, content))
        return _View(
            len(self._parts) - 1, x.dtype, tuple(x.shape), x.stride(), first,
            str(obj.device), isinstance(obj, nn.Parameter), obj.requires_grad and obj.is_leaf,
        )  # fmt: skip


# the bytes that a tensor lies in, from the beginning of a line on, and where it begins in them
def _content(x: Tensor) -> tuple[Tensor, int]:
    if not x.numel():  # a view of nothing may begin behind the end of its memory
        return torch.empty(0, dtype=torch.uint8), 0
    item, start = x.element_size(), int(x.storage_offset()) * x.element_size()
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    size = (last + 1) * item
    first = (x.untyped_storage().data_ptr() + start) % LINE
    # memory that is not torch's own may begin in the middle of a line
    begin = start if first > start else start - first
    content = torch.empty(0, dtype=torch.uint8).set_(
        x.untyped_storage(), begin, (start - begin + size,), (1,)
    )
    return (F.pad(content, (first, 0)) if first > start else content), first


class _Lasting(_Pickler):
    def persistent_id(self, obj: Any) -> _View | str | None:
        return "passing" if isinstance(obj, Passing) else super().persistent_id(obj)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, parts: Sequence[Any]) -> None:
        super().__init__(file)
        self._parts = parts

    def persistent_load(self, pid: Any) -> Tensor:
        content = self._parts[pid.place].bytes
        if not math.prod(pid.shape):
            x = torch.empty_strided(pid.shape, pid.strides, dtype=pid.dtype)
        else:
            x = torch.empty(0, dtype=pid.dtype).set_(
                content.untyped_storage(),
                (content.storage_offset() + pid.first) // pid.dtype.itemsize,
                pid.shape,
                pid.strides,
            )
        x = x.to(pid.device)
        if pid.is_parameter:
            return nn.Parameter(x, pid.learns)
        return x.requires_grad_(pid.learns)


class _Careful(_Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if module.startswith(OWN) else None
        if isinstance(found, type) and found.__module__.startswith("simplicit."):
            return found
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        if (module, name) == ("builtins", "getattr"):
            return _member  # how some versions of Python write a member of an enumeration
        if module == "builtins" and name in HARMLESS or (module, name) in ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is nothing that an answer has")


def _member(kind: Any, name: str) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise pickle.UnpicklingError(f"{kind!r} is nothing that an answer has")
    return kind[name]
