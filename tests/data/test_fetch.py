import gzip
import hashlib
import io
import shutil
import subprocess
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from simplicit.data import fetch
from simplicit.data.checked import DebianPackage, Source, contents
from simplicit.errors import InputError

CONTENTS = {"images": b"\x00\x00\x08 images", "labels": b"\x00\x00\x08 labels"}
MIRRORS = ("http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(
        name="Tiny",
        sha256={file: hashlib.sha256(data).hexdigest() for file, data in CONTENTS.items()},
        mirrors=MIRRORS,
        debian=DebianPackage("dataset-tiny", tmp_path / "usr"),
    )


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What the mirrors serve, by address; anything else cannot be reached."""
    served: dict[str, bytes] = {}

    def get(address: str, **_: object) -> requests.Response:
        if address not in served:
            raise requests.ConnectionError
        answer = requests.Response()
        answer.status_code, answer.raw = 200, io.BytesIO(served[address])
        return answer

    monkeypatch.setattr(requests, "get", get)
    return served


@pytest.fixture
def no_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


def fill(folder: Path, files: dict[str, bytes] = CONTENTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(data))
    return folder


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_data_folder_comes_first(source: Source, tmp_path: Path) -> None:
    fill(tmp_path / "usr")
    folder = fill(tmp_path / "data" / "Tiny" / "raw")
    assert fetch.locate(source, tmp_path / "data") == folder


def test_then_debians_folder_and_nothing_is_written(source: Source, tmp_path: Path) -> None:
    folder = fill(tmp_path / "usr")
    assert fetch.locate(source, tmp_path / "data") == folder
    assert not (tmp_path / "data").exists()


def test_then_the_mirrors_in_order(
    source: Source, tmp_path: Path, web: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    for file, data in CONTENTS.items():
        web[f"{MIRRORS[1]}{file}.gz"] = gzip.compress(data)
    web[f"{MIRRORS[0]}labels.gz"] = b"<html>please log in</html>"
    folder = fetch.locate(source, tmp_path)
    assert listing(folder) == ["images.gz", "labels.gz"]
    assert {file: contents(source, folder, file) for file in CONTENTS} == CONTENTS
    said = capsys.readouterr().err.splitlines()
    assert "could not download images.gz from there (ConnectionError)" in said
    assert "could not download labels.gz from there (InputError)" in said


def test_a_real_download_over_http(source: Source, tmp_path: Path) -> None:
    served = fill(tmp_path / "served")
    handler = partial(QuietHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        # the first mirror answers 404
        folder = fetch.locate(replace(source, mirrors=(f"{here}old/", here)), tmp_path / "data")
        server.shutdown()
    assert {file: contents(source, folder, file) for file in CONTENTS} == CONTENTS


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_stopped_download_fetches_only_what_is_missing(
    source: Source, tmp_path: Path, web: dict[str, bytes]
) -> None:
    folder = fill(tmp_path / "Tiny" / "raw", {"images": CONTENTS["images"]})
    web[f"{MIRRORS[0]}labels.gz"] = gzip.compress(CONTENTS["labels"])
    assert fetch.locate(source, tmp_path) == folder
    assert listing(folder) == ["images.gz", "labels.gz"]


@pytest.mark.usefixtures("no_apt", "web")
def test_else_one_line_says_what_to_put_where(source: Source, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch.locate(source, tmp_path)
    folder = tmp_path / "Tiny" / "raw"
    assert str(caught.value) == f"Tiny could not be fetched: put images.gz, labels.gz into {folder}"
    assert listing(folder) == []


class Apt:
    """Stands in for apt-get and dpkg-deb; fails where it is told to."""

    def __init__(self, package: DebianPackage, files: dict[str, bytes]) -> None:
        self.package, self.files = package, files
        self.calls: list[list[str]] = []
        self.lists = True

    def __call__(
        self, command: list[str], cwd: Path | None = None, capture_output: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        self.calls.append([str(word) for word in command])
        private = any("Dir::State=" in word for word in self.calls[-1])
        if command[0] == "dpkg-deb":
            fill(Path(command[3]) / self.package.folder.relative_to("/"), self.files)
        elif command[-1] == self.package.name:
            if not (self.lists or private):
                return subprocess.CompletedProcess(command, 100)
            assert cwd is not None
            (cwd / "dataset-tiny_1_all.deb").touch()
        return subprocess.CompletedProcess(command, 0)


@pytest.fixture
def apt(source: Source, monkeypatch: pytest.MonkeyPatch) -> Apt:
    assert source.debian
    apt = Apt(source.debian, CONTENTS)
    monkeypatch.setattr(subprocess, "run", apt)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return apt


@pytest.mark.usefixtures("web")
@pytest.mark.parametrize("lists", [True, False])
def test_debians_package_is_the_last_resort(
    source: Source, tmp_path: Path, apt: Apt, lists: bool
) -> None:
    apt.lists = lists
    folder = fetch.locate(source, tmp_path)
    assert listing(folder) == ["images.gz", "labels.gz"]
    # the lists of the system are enough, or private ones are made
    assert any(call[-1] == "update" for call in apt.calls) is not lists


@pytest.mark.usefixtures("web")
def test_a_package_with_other_contents_is_refused(source: Source, tmp_path: Path, apt: Apt) -> None:
    apt.files = {"images": b"other", "labels": b"other"}
    with pytest.raises(InputError, match="could not be fetched"):
        fetch.locate(source, tmp_path)
    assert listing(tmp_path / "Tiny" / "raw") == []


@pytest.mark.usefixtures("web", "apt")
def test_without_a_package_apt_is_not_asked(source: Source, tmp_path: Path, apt: Apt) -> None:
    with pytest.raises(InputError, match="could not be fetched"):
        fetch.locate(replace(source, debian=None), tmp_path)
    assert apt.calls == []


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_packed_and_unpacked_files_are_the_same(source: Source, tmp_path: Path, name: str) -> None:
    data = CONTENTS["images"]
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert contents(source, tmp_path, "images") == data


PACKED = gzip.compress(CONTENTS["images"], mtime=0)


@pytest.mark.parametrize(
    "damaged",
    [
        gzip.compress(b"something else", mtime=0),
        PACKED[:-9],
        PACKED[:12] + b"?" + PACKED[13:],
        b"",
    ],
    ids=["other contents", "cut off", "one byte changed", "empty"],
)
def test_a_damaged_file_is_named(source: Source, tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(damaged)
    with pytest.raises(
        InputError, match=r"^[^\n]+: damaged [^\n]+delete it and run again$"
    ) as caught:
        contents(source, tmp_path, "images")
    assert str(caught.value).startswith(str(path))


def test_a_data_folder_that_is_a_file_is_one_line(source: Source, tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(InputError, match="^cannot write to [^\n]+$"):
        fetch.locate(source, tmp_path / "data")
