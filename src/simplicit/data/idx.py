"""The IDX format of the MNIST family: big-endian header, then raw bytes.

Bytes 0 and 1 are zero, byte 2 is the element type (8: unsigned byte), byte 3 the number of
dimensions d; then d sizes of four bytes each, then the elements in C order (LeCun, Cortes and
Burges, "The MNIST database of handwritten digits").
"""

import math
import struct

import numpy as np

from simplicit.errors import InputError

UNSIGNED_BYTE = 8


def parse(contents: bytes, name: str) -> np.ndarray:
    """Read one IDX array of unsigned bytes.

    Args:
        contents: The uncompressed file.
        name: What to call it in an error.

    Returns:
        A read-only uint8 array of the shape in the header.

    Raises:
        InputError: Where the header or the length is not that of such a file.
    """
    if len(contents) < 4 or contents[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise InputError(f"{name}: not an IDX file of unsigned bytes (begins 00 00 08)")
    dimensions = contents[3]
    start = 4 + 4 * dimensions
    if dimensions == 0 or len(contents) < start:
        raise InputError(f"{name}: IDX header cut short or without dimensions")
    shape = struct.unpack(f">{dimensions}I", contents[4:start])
    found, expected = len(contents) - start, math.prod(shape)
    if found != expected:
        raise InputError(f"{name}: holds {found} bytes of data; its header says {expected}")
    return np.frombuffer(contents, dtype=np.uint8, offset=start).reshape(shape)
