"""Pages against the code: keys, files and columns of a run, paths, links, commands, examples."""

import csv
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from simplicit._moved import MOVED
from simplicit.convex.solution import Status
from simplicit.explicit.training import OPTIMIZERS
from simplicit.lab.config.config import Config, load, load_each
from simplicit.lab.config.errors import dotted_keys
from simplicit.lab.evaluate import speed
from simplicit.lab.methods import KINDS, Kind
from simplicit.lab.plots import COMPARED, FIGURES, ROBUSTNESS, SKIPPED, SPEED
from simplicit.lab.run.run import run
from simplicit.lab.run.seed import FIRST

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
ROOMS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
ALL = [*PAGES, *ROOMS, ROOT / "CHANGELOG.md"]


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
    with pytest.MonkeyPatch.context() as patch:  # times that are seldom right, soon
        patch.setattr(speed, "SECONDS", 1e-4)
        patch.setattr(speed, "_onnx", lambda *_: None)
        run(load(ROOT / "configs" / "digits.yaml", settings), out)
    return out


def test_every_file_of_a_run_is_documented(folder: Path) -> None:
    named = set(first_column(page("run-folder").split("\n## ")[0]))
    written = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    figures = {f"plots/{name}.{kind}" for name in FIGURES | SPEED for kind in ("png", "csv")}
    assert written - figures == named


def test_every_figure_says_what_to_look_at(folder: Path) -> None:
    for name, figure in {**FIGURES, **ROBUSTNESS, **COMPARED}.items():
        assert re.search(r"(^|\. )Look (at|for) [^.]+\.", figure.CAPTION), name
    # so that the gallery, which is drawn from such a run, has no gap
    assert json.loads((folder / "plots" / SKIPPED).read_text("utf-8")) == {}


def test_every_metric_is_documented(folder: Path) -> None:
    rows = cells(section(page("run-folder"), "metrics.json and metrics.csv"))
    both = {name.strip("`") for name, of, _ in rows if of == "both"}
    implicit = {name.strip("`") for name, of, _ in rows if of == "implicit"}
    for record in json.loads((folder / "metrics.json").read_text("utf-8")):
        wanted = both if record["model"] == "explicit" else both | implicit
        assert record.keys() - {"pays_from"} == wanted  # where the machine is slower with zeros


@pytest.mark.parametrize(
    "table", ["rows.csv", "layers.csv", "budget.csv", "trace.csv", "convergence.csv"]
)
def test_every_column_is_documented(folder: Path, table: str) -> None:
    with (folder / table).open(encoding="utf-8", newline="") as file:
        columns = next(csv.reader(file))
    assert sorted(columns) == sorted(first_column(section(page("run-folder"), table)))


def test_every_phase_of_a_run_is_documented(folder: Path) -> None:
    text = section(page("run-folder"), "metrics.json and metrics.csv")
    phases = {k for r in json.loads((folder / "metrics.json").read_text("utf-8")) for k in r}
    phases = {name for name in phases if name.startswith("seconds_")}
    # a level of robustness is searched for in other runs than this one
    assert set(re.findall(r"`(seconds_\w+)`", text)) == phases | {"seconds_robustness"}


def test_stages_of_the_budget_are_documented(folder: Path) -> None:
    (row,) = [r for r in cells(section(page("run-folder"), "budget.csv")) if r[0] == "`stage`"]
    with (folder / "budget.csv").open(encoding="utf-8", newline="") as file:
        stages = {record["stage"] for record in csv.DictReader(file)}
    named = set(re.findall(r"`([\w ]+)`", row[1]))
    assert {re.sub(r"\d+", "1", stage) for stage in stages} == named - {"robustness"}


def test_kinds_of_methods_are_documented() -> None:
    rows = section(page("run-folder"), "The folder of a comparison").splitlines()
    table = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if "|" in row]
    documented = {kind: set(names.split(", ")) for kind, names in table[2:]}
    methods = {str(kind): {name for name in KINDS if KINDS[name] is kind} for kind in Kind}
    assert documented == methods


def test_old_paths_lead_where_the_page_says() -> None:
    rows = cells(section(page("api"), "Places that have moved"))
    assert rows
    assert not [row for row in rows if MOVED.get(row[0].strip("`")) != row[1].strip("`")]


def test_options_that_do_nothing_are_told_apart() -> None:
    text = page("configuration").split("## explicit")[0]
    told = re.search(r"Four keys of the first release(.*?)A note", text, re.DOTALL)
    assert told
    assert set(re.findall(r"`(\w+)`", told[1])) == set(FIRST)


def test_every_status_of_a_row_but_the_internal_one_is_documented() -> None:
    rows = cells(page("solver"))
    named = [name for row in rows for name in re.findall(r"`([A-Z_]+)`", row[0])]
    assert set(named) == {status.name for status in Status} - {"UNSOLVED"}


@pytest.mark.parametrize("path", [*PAGES, *ROOMS], ids=lambda path: path.stem)
def test_pages_name_files_and_modules_that_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    package, roots = ROOT / "src" / "simplicit", (ROOT, ROOT / "src" / "simplicit", ROOT / "tests")
    missing = [
        name
        for name in set(re.findall(r"(?<![\w./-])((?:\w+/)*\w+\.py)(?!\w)", text))
        if not any((root / name).exists() for root in roots)
    ]
    folders = set(re.findall(r"`((?:\w+/)+)`", text)) - {"checkpoint/", "plots/"}
    missing += [n for n in folders if not (ROOT / n).is_dir() and not (package / n).is_dir()]
    assert not missing


@pytest.mark.parametrize("path", [*PAGES, *ROOMS], ids=lambda path: path.stem)
def test_pages_name_python_that_can_be_imported(path: Path) -> None:
    text = path.read_text("utf-8").split("## Places that have moved")[0]
    for name in set(re.findall(r"\bsimplicit(?:\.[A-Za-z_]\w*)+", text)):
        parts = name.split(".")
        found = importlib.import_module(parts[0])
        for depth, part in enumerate(parts[1:], 2):
            if not hasattr(found, part):
                importlib.import_module(".".join(parts[:depth]))
            found = getattr(found, part)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for file, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)\)", path.read_text("utf-8")):
        target = path.parent / file if file else path
        assert target.exists() or "_gallery" in file, file
        if anchor:
            assert anchor in anchors(target), f"{file}#{anchor}"


def anchors(path: Path) -> set[str]:
    """Of the headings of a page, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_commands_name_configurations_and_keys_that_exist(path: Path) -> None:
    text = path.read_text("utf-8").replace("\\\n", " ")
    for command in re.findall(r"simplicit (?:run|compare|inspect|plan) configs/[^`#\n]*", text):
        _, kind, config, *words = shlex.split(command)
        keys = [word for word in words if "=" in word]
        if kind in ("compare", "plan"):
            load_each(ROOT / config, keys)
        else:
            load(ROOT / config, keys)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_python_on_the_pages_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for source in re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.M):
        exec(compile(source, path.name, "exec"), names)
