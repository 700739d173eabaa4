"""What is taken apart comes together again: values, strides, places in a line of the cache."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from simplicit.convex.solution import Status
from simplicit.workers.lender import SMALL, Lender
from simplicit.workers.packing import LINE, Held, Mapped, Pack, fingerprint, pack, unpack


@dataclass(frozen=True)
class Thing:
    a: torch.Tensor
    b: dict[str, torch.Tensor]


def lies(x: torch.Tensor) -> int:
    return x.data_ptr() % LINE


BASE = torch.randn(40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

VIEWS = {
    "whole": BASE,
    "transposed": BASE.T,
    "rows": BASE[3:7],
    "strided": BASE[::2, 1::3],
    "expanded": BASE[:, :1].expand(40, 9),
    "empty": BASE[:0],
    "a part of nothing": torch.zeros(200, 0)[100:],
    "a number": BASE[3, 4],
    "single": BASE.float()[5:, 2],
    "mask": BASE > 0,
    "numpy's": torch.from_numpy(np.arange(37, dtype=np.int64))[3:],
    "odd bytes": torch.from_numpy(np.arange(99, dtype=np.uint8)[5:]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_tensor_keeps_values_strides_and_its_place_in_a_line(name):
    x = VIEWS[name]
    found = unpack(pack({"x": [x]}))["x"][0]
    assert torch.equal(found, x) and found.dtype == x.dtype
    if x.numel():
        assert found.stride() == x.stride() and lies(found) == lies(x)


@given(
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_so_does_any_view(shape, starts, step, other):
    x = torch.randn(shape)[starts[0] :: step, starts[1] :: other].T
    found = unpack(pack(x))
    assert torch.equal(found, x) and fingerprint(found) == fingerprint(x)
    if x.numel():
        assert found.stride() == x.stride() and lies(found) == lies(x)


def test_only_what_a_view_spans_goes_along():
    packed = pack(torch.zeros(10_000, 100)[17:19])
    assert len(packed.parts[0]) <= 2 * 100 * 4 + LINE


def test_modules_and_parameters():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    net[0].bias.requires_grad_(False)
    found = unpack(pack(net))
    for a, b in zip(net.parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b) and type(a) is type(b) and a.requires_grad == b.requires_grad
    assert torch.equal(found[1].get_buffer("running_var"), net[1].get_buffer("running_var"))


def test_bytes_that_went_another_way_begin_at_a_line(tmp_path):
    content = pack(BASE).parts[0]
    for protocol in (4, 5):
        copy = pickle.loads(pickle.dumps(content, protocol))
        assert torch.equal(copy.bytes, content.bytes) and lies(copy.bytes) == 0
    content.bytes.numpy().tofile(tmp_path / "content")
    mapped = Mapped(str(tmp_path / "content"))
    assert torch.equal(mapped.bytes, content.bytes) and lies(mapped.bytes) == 0
    mapped.bytes.zero_()  # stays in this process, and in this tensor
    assert torch.equal(mapped.bytes, content.bytes)


def test_fingerprints_tell_things_apart():
    large = torch.arange(400_000, dtype=torch.float64)
    other, swapped = large.clone(), large.clone()
    other[123_456] += 1e-9
    swapped[0], swapped[1] = large[1], large[0]
    every = [large, other, swapped, large[1:], large.view(2, -1), {"a": large}, 1, "1"]
    found = [fingerprint(x) for x in every]
    assert len(set(found)) == len(every)
    assert fingerprint(large.clone()) == found[0]


class Evil:
    def __reduce__(self):
        return eval, ("1 + 1",)


def test_a_file_from_anyone_calls_nothing():
    answer = (1, [None, True], (torch.ones(3), torch.Size([2]), torch.float32), Status.TIME_LIMIT)
    assert repr(unpack(pack(answer), careful=True)) == repr(answer)
    for bad in (Evil(), torch.load, print, nn.Linear(2, 2)):
        with pytest.raises(pickle.UnpicklingError, match="is nothing that an answer has"):
            unpack(pack(bad), careful=True)


def test_what_is_alike_is_lent_once():
    lent, back = [], []

    def lend(held: Held) -> Held:
        lent.append(held)
        return held

    lender = Lender(lend, back.append)
    x = torch.randn(SMALL, dtype=torch.float64)
    thing = Thing(x, {"again": x.view(2, -1).T, "a copy": x.clone(), "small": x[:3]})
    found = unpack(Pack(*vars(pack(thing, lender)).values()))
    assert torch.equal(found.b["a copy"], x) and torch.equal(found.b["small"], x[:3])
    assert len(lent) == 1 and lender.sent == x.nbytes
    x += 1  # the same place, other bytes
    pack(x, lender)
    assert len(lent) == 2 and not back
    lender.forget()  # bytes that can be taken back are not with a worker
    pack(x, lender)
    assert len(lent) == 2 and not back
    lender = Lender(lend)
    for times in (1, 2):
        pack(x, lender)
        lender.forget()
        assert len(lent) == 2 + times


def test_there_is_an_end_to_what_is_lent(monkeypatch):
    monkeypatch.setattr("simplicit.workers.lender.MOST", 5 * 8 * SMALL)
    there: list[Held] = []
    lender = Lender(lambda held: there.append(held) or held, there.remove)
    for k in range(8):
        pack(torch.full((SMALL,), k, dtype=torch.float64), lender)
        lender.end()
        assert len(there) == min(k + 1, 5)
