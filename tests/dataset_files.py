"""Small files as datasets publish them: CIFAR's archives, MNIST's IDX."""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np

from simplicit.data import cifar

RNG = np.random.default_rng(0)
NAMES = b"ant\nbee\n\n"


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """A gzipped tar file."""
    with tarfile.open(path, "w:gz") as archive:
        for name, contents in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            archive.addfile(info, io.BytesIO(contents))
    return path


def written(images: np.ndarray, labels: np.ndarray, coarse: bool) -> bytes:
    """Records, one value after another."""
    records = []
    for image, label in zip(images, labels, strict=True):
        record = [9] * coarse + [int(label)]
        for channel in range(3):
            for row in range(32):
                record += image[channel, row].tolist()
        records.append(bytes(record))
    return b"".join(records)


def tiny(layout: cifar.Layout) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """Two records a file, in the order of the files."""
    names = (*layout.train, *layout.test)
    images = RNG.integers(0, 256, (2 * len(names), 3, 32, 32), dtype=np.uint8)
    labels = RNG.integers(0, 2, 2 * len(names), dtype=np.uint8)
    files = {
        name: written(images[2 * i : 2 * i + 2], labels[2 * i : 2 * i + 2], layout.labels == 2)
        for i, name in enumerate(names)
    }
    return files | {layout.classes: NAMES}, images, labels


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
