import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_files import idx_bytes, pack, tiny
from simplicit.data import datasets as data
from simplicit.data.cifar import CIFAR10, CIFAR100, Layout
from simplicit.errors import InputError


@pytest.fixture
def tiny_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Six training and three test images in the data folder, under MNIST's name."""
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": rng.integers(0, 10, 6, dtype=np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (3, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, 3, dtype=np.uint8),
    }
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    checksums = {}
    for file, array in arrays.items():
        contents = idx_bytes(array)
        checksums[file] = hashlib.sha256(contents).hexdigest()
        (folder / f"{file}.gz").write_bytes(gzip.compress(contents))
    monkeypatch.setattr(data, "MNIST", replace(data.MNIST, sha256=checksums, mirrors=()))
    return arrays


def test_mnist_is_scaled_to_the_unit_interval(
    tiny_mnist: dict[str, np.ndarray], tmp_path: Path
) -> None:
    loaded = data.load("MNIST", tmp_path)
    assert loaded.train_inputs.dtype == torch.float32
    assert loaded.train_labels.dtype == torch.int64
    assert loaded.train_inputs.shape == (6, 28, 28)
    assert loaded.test_inputs.shape == (3, 28, 28)
    restored = (loaded.test_inputs * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(restored, tiny_mnist["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(
        loaded.train_labels.numpy(), tiny_mnist["train-labels-idx1-ubyte"]
    )
    assert float(loaded.train_inputs.max()) <= 1.0


@pytest.mark.usefixtures("tiny_mnist")
def test_a_description_says_how_many_what_and_where(tmp_path: Path) -> None:
    text = data.load("MNIST", tmp_path).describe()
    assert "6 training and 3 test images of 28 x 28" in text
    assert str(tmp_path / "MNIST" / "raw") in text


def test_digits_need_no_file_and_are_always_the_same() -> None:
    first, second = data.load("digits"), data.load("digits", Path("/nowhere"))
    assert first.train_inputs.shape == (1297, 8, 8)
    assert first.test_inputs.shape == (500, 8, 8)
    assert torch.equal(first.test_inputs, second.test_inputs)
    assert torch.equal(first.train_labels, second.train_labels)
    assert float(first.train_inputs.min()) == 0.0
    assert float(first.train_inputs.max()) == 1.0


def test_digits_are_split_by_class() -> None:
    digits = data.load("digits")
    counts = digits.test_labels.bincount()
    assert int(counts.max()) - int(counts.min()) <= 3
    both = torch.cat([digits.train_inputs, digits.test_inputs]).flatten(1)
    assert len(both) == 1797


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"'fashion-mnist'.*did you mean FashionMNIST\? Accepted"):
        data.load("fashion-mnist")


def test_a_sample_is_a_seeded_subset() -> None:
    chosen = data.sample(1000, 0.2, seed=3)
    assert len(chosen) == len(chosen.unique()) == 200
    assert torch.equal(chosen, chosen.sort().values)
    assert torch.equal(chosen, data.sample(1000, 0.2, seed=3))
    assert not torch.equal(chosen, data.sample(1000, 0.2, seed=4))


def test_a_sample_holds_everything_or_at_least_one() -> None:
    assert torch.equal(data.sample(7, 1.0, seed=0), torch.arange(7))
    assert len(data.sample(7, 1e-6, seed=0)) == 1


@pytest.mark.parametrize(("name", "layout"), [("CIFAR10", CIFAR10), ("CIFAR100", CIFAR100)])
def test_cifar_comes_out_of_its_archive(
    name: str, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, images, labels = tiny(layout)
    folder = tmp_path / name
    folder.mkdir()
    source = getattr(data, name)
    archive = pack(folder / source.file, files)
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(data, name, replace(source, sha256=checksum, mirrors=()))
    loaded = data.load(name, tmp_path)
    assert loaded.name == name and loaded.origin == str(archive)
    assert loaded.test_inputs.shape == (2, 3, 32, 32)
    np.testing.assert_array_equal((loaded.test_inputs * 255).round().numpy(), images[-2:])
    assert loaded.test_labels.tolist() == labels[-2:].tolist()
    monkeypatch.setattr(data, name, replace(source, mirrors=()))
    with pytest.raises(InputError, match="damaged or another version"):
        data.load(name, tmp_path)
    archive.unlink()
    with pytest.raises(InputError, match=f"{name} could not be fetched: put {source.file} into"):
        data.load(name, tmp_path)
