"""Datasets of one's own: a NumPy `.npz` file with images, labels and the classes' names."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from simplicit.errors import InputError

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")
"""What a file must hold."""


def read(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Read and check a file; pickled arrays are refused.

    Args:
        path: A file with `ARRAYS`: images uint8 (n, height, width) or, with channels last,
            (n, height, width, channels); labels whole numbers (n,) from 0; classes text.

    Returns:
        Its arrays, images with channels first, and the names of the classes.

    Raises:
        InputError: If the file is missing or damaged, or an array is missing or not as above.
    """
    try:
        # opened here, as numpy leaves a damaged one open
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise InputError(f"{path}: not a readable .npz file (no zip archive)")
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            if missing := [name for name in ARRAYS if name not in loaded]:
                raise InputError(
                    f"{path}: lacks {', '.join(missing)}; accepted is a file with "
                    f"{', '.join(ARRAYS)}"
                )
            arrays = {name: loaded[name] for name in ARRAYS}
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    # numpy raises ValueError for what is not an array, or one that needs pickle
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else "cut short"
        raise InputError(f"{path}: not a readable .npz file ({reason})") from error
    classes = arrays.pop("classes")
    if classes.ndim != 1 or classes.dtype.kind != "U" or not len(classes):
        raise InputError(f"{path}: classes is {_kind(classes)}; accepted is a list of names")
    for part in ("train", "test"):
        _check(path, part, arrays, len(classes))
    sizes = [arrays[f"{part}_images"].shape[1:] for part in ("train", "test")]
    if sizes[0] != sizes[1]:
        raise InputError(f"{path}: training images are {sizes[0]}, test images {sizes[1]}")
    return arrays, tuple(str(name) for name in classes)


def _check(path: Path, part: str, arrays: dict[str, np.ndarray], classes: int) -> None:
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise InputError(
            f"{path}: {part}_images is {_kind(images)}; accepted is uint8 (n, height, width) or "
            "(n, height, width, channels), n at least 1"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise InputError(
            f"{path}: {part}_labels is {_kind(labels)}; accepted is whole numbers, one for each of "
            f"{len(images)} images"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{path}: {part}_labels goes from {labels.min()} to {labels.max()}; accepted is 0 to "
            f"{classes - 1}, for {classes} classes"
        )
    if images.ndim == 4:
        arrays[f"{part}_images"] = np.moveaxis(images, -1, 1)


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"
