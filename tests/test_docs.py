"""The reference pages against the code: every key, every file and column of a run, every path."""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from simplicit.convex.solution import Status
from simplicit.explicit.training import OPTIMIZERS
from simplicit.lab.config.config import Config, load
from simplicit.lab.config.errors import dotted_keys
from simplicit.lab.run.run import run

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text("utf-8")


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    return re.split(rf"^## {re.escape(heading)}$", text, flags=re.MULTILINE)[1].split("\n## ")[0]


def cells(text: str) -> list[list[str]]:
    """Rows of the tables whose first cell is code."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def first_column(text: str) -> list[str]:
    return [row[0].strip("`") for row in cells(text)]


def test_every_key_is_documented_with_its_default_and_what_is_accepted() -> None:
    documented = {row[0].strip("`"): row for row in cells(page("configuration"))}
    defaults = Config().model_dump(mode="json")
    sections = Config.model_fields.keys() - {"seeds", "data_dir", "device"}
    fields = {key: field for key, field in dotted_keys(Config) if key not in sections}
    assert documented.keys() == fields.keys()
    for key, field in fields.items():
        _, default, meaning, accepted = documented[key]
        value = defaults
        for part in key.split("."):
            value = value[part]
        assert yaml.safe_load(default.strip("`")) == value, key
        assert meaning, key
        words = field.json_schema_extra["accepted"]
        if words is OPTIMIZERS:  # another list in every version of torch
            assert "torch.optim" in accepted
        else:
            assert accepted == (words if isinstance(words, str) else ", ".join(words)), key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of everything, small."""
    settings = [
        "explicit.architecture=[64,8,6,10]",
        "explicit.epoch=1",
        "implicit.training_size=0.2",
        "implicit.sparsity=0.5",
    ]
    out = tmp_path_factory.mktemp("run") / "out"
    run(load(ROOT / "configs" / "digits.yaml", settings), out)
    return out


def test_every_file_of_a_run_is_documented(folder: Path) -> None:
    text = page("run-folder").split("\n## ")[0]
    named = set(first_column(text))
    figures = {name for name in named if name.endswith(".png")}
    named |= {name.replace(".png", ".csv") for name in figures}
    written = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert written == named


def test_every_metric_is_documented(folder: Path) -> None:
    rows = cells(section(page("run-folder"), "metrics.json and metrics.csv"))
    both = {name.strip("`") for name, of, _ in rows if of == "both"}
    implicit = {name.strip("`") for name, of, _ in rows if of == "implicit"}
    for record in json.loads((folder / "metrics.json").read_text("utf-8")):
        wanted = both if record["model"] == "explicit" else both | implicit
        assert record.keys() == wanted


@pytest.mark.parametrize("table", ["rows.csv", "layers.csv", "trace.csv", "convergence.csv"])
def test_every_column_is_documented(folder: Path, table: str) -> None:
    with (folder / table).open(encoding="utf-8", newline="") as file:
        columns = next(csv.reader(file))
    assert sorted(columns) == sorted(first_column(section(page("run-folder"), table)))


def test_every_status_of_a_row_but_the_internal_one_is_documented() -> None:
    named = re.findall(r"`([A-Z_]+)`", section(page("solver"), "The loop: `loop.py`, `course.py`"))
    assert set(named) == {status.name for status in Status} - {"UNSOLVED"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pages_name_files_that_exist(path: Path) -> None:
    known = {p.relative_to(ROOT / "src" / "simplicit").as_posix() for p in ROOT.glob("src/**/*.py")}
    names = set(re.findall(r"`((?:\w+/)*\w+\.py)`", path.read_text("utf-8")))
    missing = [n for n in names if not any(k == n or k.endswith(f"/{n}") for k in known)]
    assert not missing
    links = re.findall(r"\]\(([\w-]+\.md)\)", path.read_text("utf-8"))
    assert not [link for link in links if not (DOCS / link).exists()]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_python_on_the_pages_runs(path: Path) -> None:
    for source in re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.M):
        exec(compile(source, path.name, "exec"), {})
