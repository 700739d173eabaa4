from pathlib import Path

import numpy as np
import pytest

from dataset_files import pack, tiny
from simplicit.data import cifar
from simplicit.errors import InputError


@pytest.mark.parametrize("layout", [cifar.CIFAR10, cifar.CIFAR100])
def test_what_was_written_is_read(layout: cifar.Layout, tmp_path: Path) -> None:
    files, images, labels = tiny(layout)
    arrays, classes = cifar.read(pack(tmp_path / "a.tar.gz", files), layout)
    assert classes == ("ant", "bee")
    for name, whole in (("images", images), ("labels", labels)):
        parts = [arrays[f"{part}_{name}"] for part in ("train", "test")]
        assert [len(part) for part in parts] == [2 * len(layout.train), 2]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_damage_is_one_line(tmp_path: Path) -> None:
    layout = cifar.CIFAR100
    files, _, _ = tiny(layout)
    good = pack(tmp_path / "good.tar.gz", files).read_bytes()
    path = tmp_path / "a.tar.gz"
    train = layout.train[0]

    def line(says: str) -> None:
        with pytest.raises(InputError, match=says) as error:
            cifar.read(path, layout)
        assert "\n" not in str(error.value)

    for contents in (b"", b"no archive", good[:200], good[:-40]):
        path.write_bytes(contents)
        line(r"a\.tar\.gz: damaged")
    pack(path, {name: data for name, data in files.items() if name != train})
    line(f"{train}.*accepted is the binary version")
    pack(path, files | {train: files[train][:-1]})
    line(f"{train}: holds 6147 bytes; records have 3074 each")
    pack(path, files | {train: b""})
    line("holds 0 bytes")
    pack(path, files | {train: bytes([0, 2]) + bytes(3072)})
    line("a label of the train files is not below 2")
