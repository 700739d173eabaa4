"""The binary version of CIFAR-10 and CIFAR-100, read out of its archive; no pickle.

A file is records of fixed length: one label byte (CIFAR-10) or a coarse and a fine one
(CIFAR-100), then 3,072 bytes of 32 x 32 pixels, all red ones, all green ones, all blue ones, each
row by row (Krizhevsky, "Learning multiple layers of features from tiny images", 2009).
"""

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simplicit.errors import InputError

SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Layout:
    """The files of one archive.

    Args:
        train: Those with training records.
        test: Those with test records.
        classes: The one with the classes' names, one a line.
        labels: Label bytes of a record; the last of them is used.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: str
    labels: int


CIFAR10 = Layout(
    train=tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
    test=("cifar-10-batches-bin/test_batch.bin",),
    classes="cifar-10-batches-bin/batches.meta.txt",
    labels=1,
)

CIFAR100 = Layout(
    train=("cifar-100-binary/train.bin",),
    test=("cifar-100-binary/test.bin",),
    classes="cifar-100-binary/fine_label_names.txt",
    labels=2,
)


def read(path: Path, layout: Layout) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Read an archive; nothing is unpacked on disk.

    Args:
        path: A gzipped tar file.
        layout: What it holds.

    Returns:
        Arrays `train_images` and `test_images`, uint8 (n, 3, 32, 32), `train_labels` and
        `test_labels`, uint8 (n,); and the names of the classes.

    Raises:
        InputError: If the archive is damaged, or lacks a file, or a file is cut short.
    """
    try:
        with tarfile.open(path, "r:gz") as archive:
            contents = {
                file: _member(archive, file)
                for file in (*layout.train, *layout.test, layout.classes)
            }
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run again") from error
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]}; accepted is the binary version") from error
    classes = tuple(contents[layout.classes].decode("ascii", "replace").split())
    arrays = {}
    for part, files in (("train", layout.train), ("test", layout.test)):
        images, labels = zip(*(records(contents[f], f, layout.labels) for f in files), strict=True)
        arrays[f"{part}_images"] = np.concatenate(images)
        arrays[f"{part}_labels"] = np.concatenate(labels)
        if arrays[f"{part}_labels"].max(initial=0) >= len(classes):
            raise InputError(f"{path}: a label of the {part} files is not below {len(classes)}")
    return arrays, classes


def records(contents: bytes, name: str, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Take the records of one file apart.

    Args:
        contents: The file.
        name: What to call it in an error.
        labels: Label bytes of a record.

    Returns:
        Images, uint8 (n, 3, 32, 32), and their last labels, uint8 (n,).

    Raises:
        InputError: If the file is empty or ends within a record.
    """
    length = labels + np.prod(SHAPE)
    if not contents or len(contents) % length:
        raise InputError(f"{name}: holds {len(contents)} bytes; records have {length} each")
    rows = np.frombuffer(contents, dtype=np.uint8).reshape(-1, length)
    return rows[:, labels:].reshape(-1, *SHAPE), rows[:, labels - 1]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a file")
    return file.read()
