import errno
import io
import resource
import tempfile

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from simplicit.calibration.batches import batches
from simplicit.errors import InputError

U = torch.randn(10, 2, 3, generator=torch.Generator().manual_seed(0))
BYTES = U.nbytes


def generator(*items):
    yield from items


class Augmented(Dataset):
    """Other samples in every pass."""

    def __len__(self):
        return len(U)

    def __getitem__(self, index):
        return U[index] + torch.randn(2, 3), index


@pytest.mark.parametrize("in_memory", [10 * BYTES, BYTES // 2, 0])
@pytest.mark.parametrize(
    "make",
    [
        lambda: U,
        lambda: [U[:4], U[4:8], U[8:]],
        lambda: [(U[:4], torch.zeros(4)), [U[4:8], torch.zeros(4)], (U[8:],)],
        lambda: DataLoader(TensorDataset(U, torch.zeros(10)), batch_size=4),
        lambda: [U[:4], U[:0], U[4:8], U[8:]],
        lambda: generator(U[:4], U[4:8], U[:0], U[8:]),
        lambda: U.numpy(),
        lambda: [(part.numpy(), None) for part in U.split(4)],
    ],
    ids=[
        *("tensor", "list", "pairs", "DataLoader", "an empty batch among others", "generator"),
        *("array", "pairs of arrays"),
    ],
)
def test_any_source_gives_the_same_batches_each_pass(make, in_memory):
    stream = batches(make(), 4, in_memory=in_memory)
    assert stream.m == 10 and len(stream) == 3
    for _ in range(2):
        assert [len(batch) for batch in stream] == [4, 4, 2]
        assert torch.equal(torch.cat(list(stream)), U)
        assert torch.equal(stream.example, U[:4])


def test_a_loader_that_shuffles_gives_one_data_set():
    stream = batches(DataLoader(TensorDataset(U), batch_size=4, shuffle=True), 4)
    first, second = torch.cat(list(stream)), torch.cat(list(stream))
    assert torch.equal(first, second)
    assert sorted(first.flatten(1).tolist()) == sorted(U.flatten(1).tolist())


@pytest.mark.parametrize("in_memory", [10 * BYTES, 0])
def test_a_loader_that_augments_gives_one_data_set(in_memory):
    stream = batches(DataLoader(Augmented(), batch_size=4, shuffle=True), 4, in_memory=in_memory)
    first, second = torch.cat(list(stream)), torch.cat(list(stream))
    assert torch.equal(first, second) and torch.equal(stream.example, first[:4])


def test_a_source_is_passed_over_once():
    passes = []

    class Source:
        def __iter__(self):
            passes.append(1)
            return generator(U[:4], U[4:])

    stream = batches(Source(), 64)
    assert all(torch.equal(torch.cat(list(stream)), U) for _ in range(3))
    assert torch.equal(stream.example, U[:4]) and passes == [1]


@pytest.mark.parametrize("in_memory", [10 * BYTES, 0])
def test_a_source_may_write_all_batches_into_one_place(in_memory):
    def source():
        place = torch.empty(2, 2, 3)
        for batch in U.split(2):
            yield place.copy_(batch)

    assert torch.equal(torch.cat(list(batches(source(), 2, in_memory=in_memory))), U)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("in_memory", [BYTES // 3, 0])
def test_batches_on_disk_have_the_same_bits(dtype, in_memory):
    # a batch of 3 · 6 numbers of two bytes ends between two words; the last one is not contiguous
    items = [U[:3].to(dtype), U[3:6].double(), U[6:9].to(dtype), U.to(dtype).mT.mT[9:]]
    items.append(U.mT.to(dtype).mT)
    stream = batches(generator(*items), 4, in_memory=in_memory)
    for _ in range(2):
        for kept, item in zip(stream, items, strict=True):
            assert kept.dtype == item.dtype and torch.equal(kept, item)


def test_what_is_beyond_the_memory_is_on_disk_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    parts = U.split(2)
    assert batches(generator(*parts), 2, in_memory=BYTES).m == 10
    for there in (U, list(parts), tuple((part, 0) for part in parts)):
        assert batches(there, 2, in_memory=0).m == 10
    with pytest.raises(OSError, match="missing"):
        batches(generator(*parts), 2, in_memory=BYTES - 1)


def test_a_full_disk_is_an_error(monkeypatch, tmp_path):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full(tmp_path / "file", "w+"))
    with pytest.raises(OSError, match="No space left"):
        batches(generator(*U.split(2)), 2, in_memory=BYTES // 2)


def test_batches_on_disk_are_not_limited_by_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        stream = batches(generator(*(U[i % 10 : i % 10 + 1] for i in range(300))), 1, in_memory=0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert torch.equal(torch.cat(list(stream)), U.repeat(30, 1, 1))


def with_entry(value: float) -> torch.Tensor:
    spoilt = U.clone()
    spoilt[6, 1, 2] = value
    return spoilt


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (U[:0], "empty"),
        ([], "empty"),
        (generator(), "empty"),
        (generator(U[:0]), "empty"),
        (with_entry(float("nan")), "batch 1: sample 2 has NaN"),
        (with_entry(float("-inf")), "batch 1: sample 2 has NaN"),
        ([U, U.flatten(1)], r"batch 1: input of shape \(10, 6\): accepted is \(m, 2, 3\)"),
        (torch.randint(0, 255, (10, 2, 3), dtype=torch.uint8), "uint8: .* floating point"),
        (torch.ones(10), r"batch 0: shape \(4,\)"),
        ([{"image": "cat.png"}], "batch 0: a batch with a str as image: accepted are tensors"),
        ([U.tolist()], "batch 0: a batch is a list of list: accepted are tensors"),
        ({"a": U, "b": U[:5]}, "inputs of 10, 5 samples: accepted is one number"),
        ([{"a": U}, {"a": U.flatten(1)}], r"batch 1: input a of shape \(10, 6\)"),
        (U.to(torch.complex64), "complex inputs: .*view_as_real"),
    ],
)
def test_bad_inputs_are_named_in_one_line(inputs, message):
    with pytest.raises(InputError, match=message) as caught:
        batches(inputs, 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_size_that_is_none_is_refused(size):
    with pytest.raises(InputError, match=f"batch_size={size}: accepted is"):
        batches(U, size)
