"""A file appears whole or not at all."""

import csv
import errno
import json
from pathlib import Path

import pytest

from simplicit.system.files import replace_with, write_bytes, write_csv, write_json, write_text


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    write_text(path, "ω = 1\n")
    write_text(path, "κ < 1\n")
    assert content(path.parent) == {"file.txt": "κ < 1\n".encode()}
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError("a bug")],
    ids=["full disk", "Ctrl-C", "bug"],
)
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(failure)), replace_with(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("half of the n")
        raise failure
    assert content(tmp_path) == {"file": b"old"}


def test_a_failed_rename_leaves_nothing(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "file", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_json_reads_back(tmp_path):
    value = [{"model": "implicit", "κ": 0.1, "none": None, "many": [1, 2]}]
    write_json(tmp_path / "file.json", value)
    assert json.loads((tmp_path / "file.json").read_text("utf-8")) == value
    with pytest.raises(TypeError):
        write_json(tmp_path / "other.json", {"set": {1}})
    assert list(content(tmp_path)) == ["file.json"]


def test_csv_has_the_columns_of_all_rows_in_order_of_appearance(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, [{"model": "a", "seed": 0}, {"model": "b, c", "norm": 1e-20, "seed": 1}])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["model", "seed", "norm"]
    assert rows[0] == {"model": "a", "seed": "0", "norm": ""}
    assert rows[1] == {"model": "b, c", "seed": "1", "norm": "1e-20"}


def test_numbers_in_csv_keep_every_bit(tmp_path):
    number = 0.1 + 0.2
    write_csv(tmp_path / "table.csv", [{"x": number}])
    assert float((tmp_path / "table.csv").read_text().split()[1]) == number
