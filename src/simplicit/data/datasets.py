"""Datasets by name: images as float32 in [0, 1], labels as int64, samples first."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from simplicit.data import cifar, fetch, idx, npz
from simplicit.data.checked import Archive, DebianPackage, Source, contents
from simplicit.errors import InputError, did_you_mean

FASHION_MNIST = Source(
    name="FashionMNIST",
    sha256={
        "train-images-idx3-ubyte": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    debian=DebianPackage("dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")),
)

MNIST = Source(
    name="MNIST",
    sha256={
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
)

CIFAR10 = Archive(
    name="CIFAR10",
    file="cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
)

CIFAR100 = Archive(
    name="CIFAR100",
    file="cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
)

DIGITS = tuple(str(digit) for digit in range(10))
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

DATASETS = ("FashionMNIST", "MNIST", "CIFAR10", "CIFAR100", "digits")
"""Every name `load` accepts; besides them, the path of an `.npz` file."""


@dataclass(frozen=True)
class Dataset:
    """A split set of labelled images.

    Args:
        name: One of `DATASETS`, or the name of an `.npz` file without its ending.
        train_inputs: Images, float32 in [0, 1]: grey ones (m, height, width), others with channels
            first, (m, channels, height, width).
        train_labels: Their classes, int64, (m,).
        test_inputs: As `train_inputs`, never used for training or calibration.
        test_labels: Their classes.
        classes: Name of each class.
        origin: Where it was found.
    """

    name: str
    train_inputs: Float[Tensor, "m_train *shape"]
    train_labels: Int[Tensor, "m_train"]
    test_inputs: Float[Tensor, "m_test *shape"]
    test_labels: Int[Tensor, "m_test"]
    classes: tuple[str, ...]
    origin: str

    def with_channel(self) -> "Dataset":
        """Give grey images the one channel that convolutions want.

        Returns:
            The same data as (m, 1, height, width), nothing copied.
        """
        train, test = self.train_inputs.unsqueeze(1), self.test_inputs.unsqueeze(1)
        return replace(self, train_inputs=train, test_inputs=test)

    def describe(self) -> str:
        """Counts, shapes and where it was found, in a few lines for a person.

        Returns:
            The lines, without a newline at the end.
        """
        size = " x ".join(str(side) for side in self.train_inputs.shape[1:])
        return (
            f"{self.name}: {len(self.train_labels):,} training and {len(self.test_labels):,} test "
            f"images of {size}, in [0, 1]\n"
            f"classes: {', '.join(self.classes)}\n"
            f"found in {self.origin}"
        )


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Load a dataset, fetching it first where need be.

    Args:
        name: One of `DATASETS`, or the path of an `.npz` file, see `npz.read`.
        data_dir: The data folder; `data` if None. Not used for a path, nor for `digits`, which
            scikit-learn embeds.

    Returns:
        The dataset.

    Raises:
        InputError: On an unknown name, or files that are missing, unobtainable or damaged.
    """
    folder = Path("data") if data_dir is None else data_dir
    match name:
        case "FashionMNIST":
            return _load_mnist_like(FASHION_MNIST, CLOTHES, folder)
        case "MNIST":
            return _load_mnist_like(MNIST, DIGITS, folder)
        case "CIFAR10":
            return _load_cifar(CIFAR10, cifar.CIFAR10, folder)
        case "CIFAR100":
            return _load_cifar(CIFAR100, cifar.CIFAR100, folder)
        case "digits":
            return _load_digits()
        case _ if is_file(name):
            return _of_arrays(Path(name).stem, *npz.read(Path(name)), origin=name)
        case _:
            raise InputError(
                f"no dataset {name!r}: {did_you_mean(name, DATASETS)}; or the path of an .npz file"
            )


def is_file(name: str) -> bool:
    """Tell the path of a dataset from a name.

    Args:
        name: What `load` is given.

    Returns:
        Whether it is to be read as an `.npz` file.
    """
    return name.endswith(".npz")


def sample(total: int, fraction: float, seed: int) -> Int[Tensor, "m"]:
    """Indices of a random part of a set, each at most once, in increasing order.

    Args:
        total: Size of the set, at least 1.
        fraction: Part to take, in (0, 1]; at least one index is taken.
        seed: The same seed takes the same part.

    Returns:
        The indices, int64.
    """
    count = max(1, round(fraction * total))
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:count].sort().values


def _load_mnist_like(source: Source, classes: tuple[str, ...], data_dir: Path) -> Dataset:
    folder = fetch.locate(source, data_dir)

    def array(file: str) -> Tensor:
        return torch.tensor(idx.parse(contents(source, folder, file), file))

    return Dataset(
        name=source.name,
        train_inputs=array("train-images-idx3-ubyte").float().div_(255),
        train_labels=array("train-labels-idx1-ubyte").long(),
        test_inputs=array("t10k-images-idx3-ubyte").float().div_(255),
        test_labels=array("t10k-labels-idx1-ubyte").long(),
        classes=classes,
        origin=str(folder),
    )


def _load_cifar(source: Archive, layout: cifar.Layout, data_dir: Path) -> Dataset:
    path = fetch.archive(source, data_dir)
    return _of_arrays(source.name, *cifar.read(path, layout), origin=str(path))


def _of_arrays(
    name: str, arrays: dict[str, np.ndarray], classes: tuple[str, ...], *, origin: str
) -> Dataset:
    def inputs(part: str) -> Tensor:
        return torch.tensor(arrays[f"{part}_images"]).float().div_(255).contiguous()

    def labels(part: str) -> Tensor:
        return torch.tensor(arrays[f"{part}_labels"].astype(np.int64))

    return Dataset(
        name=name,
        train_inputs=inputs("train"),
        train_labels=labels("train"),
        test_inputs=inputs("test"),
        test_labels=labels("test"),
        classes=classes,
        origin=origin,
    )


def _load_digits() -> Dataset:
    # 1,797 handwritten digits of 8 x 8, values 0 to 16 (Alpaydin and Kaynak, 1998)
    images, labels = load_digits(return_X_y=True)
    # 500 test images, split by class, always the same ones
    train, test, train_labels, test_labels = train_test_split(
        images, labels, test_size=500, stratify=labels, random_state=0
    )

    def inputs(pixels: ArrayLike) -> Tensor:
        return torch.tensor(np.asarray(pixels), dtype=torch.float32).div_(16).reshape(-1, 8, 8)

    return Dataset(
        name="digits",
        train_inputs=inputs(train),
        train_labels=torch.tensor(train_labels, dtype=torch.int64),
        test_inputs=inputs(test),
        test_labels=torch.tensor(test_labels, dtype=torch.int64),
        classes=DIGITS,
        origin="scikit-learn",
    )
