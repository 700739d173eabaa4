from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simplicit.data import datasets as data
from simplicit.data import npz
from simplicit.errors import InputError

RNG = np.random.default_rng(0)


def arrays(**changes: Any) -> dict[str, Any]:
    """Four training and three test images of 5 x 6 in two classes, with changes."""
    good = {
        "train_images": RNG.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8),
        "train_labels": np.array([0, 1, 1, 0]),
        "test_images": RNG.integers(0, 256, (3, 5, 6, 3), dtype=np.uint8),
        "test_labels": np.array([1, 0, 1], dtype=np.uint8),
        "classes": np.array(["ant", "bee"]),
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def test_a_file_is_a_dataset_with_channels_first(tmp_path: Path) -> None:
    written = arrays()
    np.savez(tmp_path / "mine.npz", **written)
    loaded = data.load(str(tmp_path / "mine.npz"), Path("/nowhere"))
    assert loaded.name == "mine" and loaded.classes == ("ant", "bee")
    assert loaded.train_inputs.shape == (4, 3, 5, 6) and loaded.train_inputs.is_contiguous()
    assert loaded.test_inputs.dtype == torch.float32 and loaded.test_labels.dtype == torch.int64
    restored = (loaded.test_inputs * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(restored.numpy(), written["test_images"])
    assert loaded.train_labels.tolist() == [0, 1, 1, 0]
    assert "4 training and 3 test images of 3 x 5 x 6" in loaded.describe()


def test_grey_images_have_no_channel_until_one_is_wanted(tmp_path: Path) -> None:
    grey = {f"{part}_images": arrays()[f"{part}_images"][..., 0] for part in ("train", "test")}
    np.savez_compressed(tmp_path / "grey.npz", **arrays(**grey))
    loaded = data.load(str(tmp_path / "grey.npz"))
    assert loaded.train_inputs.shape == (4, 5, 6)
    with_channel = loaded.with_channel()
    assert with_channel.train_inputs.shape == (4, 1, 5, 6)
    assert with_channel.test_inputs.shape == (3, 1, 5, 6)
    assert with_channel.train_inputs.data_ptr() == loaded.train_inputs.data_ptr()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test_labels": None, "classes": None}, "lacks test_labels, classes; accepted is"),
        ({"train_images": np.zeros((4, 5, 6))}, r"train_images is float64 \(4, 5, 6\)"),
        ({"train_images": np.zeros((4, 5), np.uint8)}, r"train_images is uint8 \(4, 5\)"),
        ({"train_images": np.zeros((0, 5, 6, 3), np.uint8)}, "n at least 1"),
        ({"test_images": np.zeros((3, 5, 7, 3), np.uint8)}, r"images are \(3, 5, 6\), test images"),
        ({"train_labels": np.array([0, 1, 1])}, r"train_labels is int64 \(3,\).*each of 4 images"),
        ({"train_labels": np.zeros(4)}, "train_labels is float64"),
        ({"train_labels": np.array([0, 1, 2, 0])}, "goes from 0 to 2; accepted is 0 to 1"),
        ({"train_labels": np.array([0, 1, -1, 0])}, "goes from -1 to 1"),
        ({"classes": np.array([0, 1])}, r"classes is int64 \(2,\); accepted is a list of names"),
        ({"classes": np.array(["ant", None])}, r"not a readable \.npz file"),  # needs pickle
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, changes: dict, says: str) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(InputError, match=says) as error:
        npz.read(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_files_that_are_damaged_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[300] ^= 255
    for contents in (b"", b"nothing of the sort", whole[:100], whole[:-30], bytes(flipped)):
        path.write_bytes(contents)
        with pytest.raises(InputError, match=r"mine\.npz: not a readable") as error:
            npz.read(path)
        assert "\n" not in str(error.value)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match="no zip archive"):  # a single array
        npz.read(path)
    with pytest.raises(InputError, match="no such file"):
        npz.read(tmp_path / "none.npz")
    with pytest.raises(InputError, match="not a readable"):
        npz.read(tmp_path)
