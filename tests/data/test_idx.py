import numpy as np
import pytest

from dataset_files import idx_bytes
from simplicit.data import idx
from simplicit.errors import InputError


def test_reads_back_what_the_format_says() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(idx.parse(idx_bytes(array), "x"), array)


def test_sizes_are_big_endian() -> None:
    assert idx.parse(idx_bytes(np.zeros(300, np.uint8)), "x").shape == (300,)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\x00\x00",
        b"<html>not found</html>",
        b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00\x00\x00\x00",  # floats
        b"\x00\x00\x08\x00",  # no dimensions
        b"\x00\x00\x08\x03\x00\x00\x00\x01",  # header cut short
        idx_bytes(np.zeros((2, 3), np.uint8))[:-1],
        idx_bytes(np.zeros((2, 3), np.uint8)) + b"\x00",
    ],
)
def test_anything_else_is_one_line_with_the_name(contents: bytes) -> None:
    with pytest.raises(InputError, match="^images: [^\n]+$"):
        idx.parse(contents, "images")
