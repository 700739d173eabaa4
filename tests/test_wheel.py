"""The wheel holds the whole package and writes reports where nothing else of the repository is."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fake_run import metrics

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel unpacks to; built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--wheel-dir", folder, REPOSITORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_file_of_the_package_is_in_the_wheel_and_types_are_announced(installed: Path) -> None:
    assert files(installed / "simplicit") == files(REPOSITORY / "src" / "simplicit")
    assert (installed / "simplicit" / "py.typed").exists()


PAGES = """
import sys
from pathlib import Path
import simplicit
from simplicit.lab.report.report import write_comparison, write_report
for folder, write in zip(sys.argv[1:], (write_report, write_comparison)):
    write(Path(folder))
print(simplicit.__file__)
"""


def test_reports_are_written_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    run, comparison = tmp_path / "run", tmp_path / "comparison"
    for folder, more in ((run, {}), (comparison, {"target": 0.75})):
        folder.mkdir()
        rows = [row | (more if row["model"] == "implicit" else {}) for row in metrics()]
        (folder / "metrics.json").write_text(json.dumps(rows))
    done = subprocess.run(
        [sys.executable, "-c", PAGES, run, comparison],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed)
    for folder in (run, comparison):
        assert "87.05 %" in (folder / "report.html").read_text("utf-8")
