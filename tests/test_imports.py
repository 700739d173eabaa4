"""The house: every file is in a folder that stands in FLOORS, and imports go downwards only.

Only imports at the top of a file count: one inside a function (`model.save` reaching for `archive`,
the command line before it works) is how a file offers a convenience without depending on it.
"""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import simplicit
from simplicit.system.extras import EXTRAS

ROOT = Path(simplicit.__file__).parent
TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent

FLOORS = (
    ("errors", "_types", "_moved"),
    ("system", "equations.maps"),
    ("equations", "workers"),
    ("convex", "data", "capture", "model.archive"),
    ("model",),
    ("solvers", "calibration", "explicit", "bounds", "runtime"),
    ("sparsity",),
    ("outputs", "recipe", "units"),
    ("matching", "refine"),
    ("fit",),
    ("",),
    ("lab",),
    ("lab.results", "lab.evaluate"),
    ("lab.baselines.tools",),
    ("lab.baselines",),
    ("lab.config", "lab.plots"),
    ("lab.plots.figures",),
    ("lab.report",),
    ("lab.run",),
    ("lab.plan",),
    ("cli",),
    ("__main__",),
)
"""Folders, and the files that stand in none, lowest first; `` is the package's own `__init__`."""

LARGEST = 12
"""Most files of a folder, but for that of the figures, where one more is the expected change."""

MATHEMATICS = ("equations", "convex", "solvers", "bounds")
OUTSIDE = {"json", "pathlib", "os", "shutil", "safetensors", "omegaconf", "yaml", "pydantic"}
OUTSIDE |= {"matplotlib", "rich", "typer", "requests", "sklearn", "logging"}
"""What mathematics has no business with: files, settings, printing, networks of computers."""


def files() -> dict[str, Path]:
    """Dotted module names under the package; a folder's own name is its `__init__`."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = files()


def resolve(module: str, node: ast.ImportFrom) -> set[str]:
    """Modules of this package that a `from … import …` names."""
    is_folder = FILES[module].name == "__init__.py"
    package = module.split(".") if module else []
    package = package if is_folder else package[:-1]
    if node.level == 0:
        if (node.module or "").split(".")[0] != "simplicit":
            return set()
        base = (node.module or "").split(".")[1:]
    else:
        base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
    base = [part for part in base if part]
    names = {".".join([*base, alias.name]) for alias in node.names}
    return {name for name in names if name in FILES} or {".".join(base)}


def top(tree: ast.Module) -> list[ast.stmt]:
    return [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


def imports(module: str) -> set[str]:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    nodes = [node for node in top(tree) if isinstance(node, ast.ImportFrom)]
    return set().union(*(resolve(module, node) for node in nodes)) - {module}


GRAPH = {module: imports(module) for module in FILES}
PLACE = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def room(module: str) -> str:
    """The longest listed name that the module's begins with."""
    parts = module.split(".")
    names = [".".join(parts[:k]) for k in range(len(parts), 0, -1)]
    return next((name for name in names if name in PLACE), module)


def reachable(start: str) -> set[str]:
    seen, queue = set(), [start]
    while queue:
        module = queue.pop()
        if module not in seen:
            seen.add(module)
            queue += GRAPH[module]
    return seen - {start}


def test_every_import_is_found():
    unknown = {(m, n) for m, names in GRAPH.items() for n in names if n not in FILES}
    assert not unknown
    assert {"convex.gram", "convex.prox"} <= GRAPH["convex.problem"]


def test_every_file_has_a_floor():
    assert not [module for module in FILES if room(module) not in PLACE]


def test_no_file_reaches_itself():
    reached = {module: {module} | reachable(module) for module in FILES}
    circles = [
        (m, name) for m, names in GRAPH.items() for name in names if m and m in reached[name]
    ]
    assert not circles


def test_imports_go_downwards():
    upwards = [
        (module, name)
        for module, names in GRAPH.items()
        for name in names
        if room(name) != room(module)
        and PLACE[room(name)] >= PLACE[room(module)]
        # the faces of folders may stand above what they show
        and not (FILES[module].name == "__init__.py" and room(name).startswith(room(module)))
    ]
    assert not upwards


def test_folders_are_small_and_say_why():
    for folder in {path.parent for path in FILES.values()}:
        assert len(list(folder.glob("*.py"))) <= LARGEST or folder.name == "figures", folder
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))), folder


@pytest.mark.parametrize("module", [m for m in FILES if room(m).split(".")[0] in MATHEMATICS])
def test_mathematics_reads_no_file_and_prints_nothing(module):
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    used = set()
    for node in top(tree):
        imported = node.names if isinstance(node, ast.Import) else []
        names = [a.name for a in imported] or [getattr(node, "module", "") or ""]
        used |= {name.split(".")[0] for name in names if not getattr(node, "level", 0)}
    assert not used & (OUTSIDE - ({"sklearn"} if module == "solvers.estimator" else set()))
    calls = {
        n.func.id
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    assert not calls & {"print", "open", "input"}


def test_the_library_knows_no_laboratory():
    library = {m for m in FILES if not m.startswith("lab") and m not in ("cli", "__main__")}
    assert not [(m, name) for m in library for name in GRAPH[m] if name.startswith("lab")]


@pytest.mark.parametrize("module", [m for m in FILES if m.startswith("lab.evaluate")])
def test_judges_know_no_solver(module):
    strangers = ("solvers", "fit", "lab.baselines", "matching")
    assert not {m for m in reachable(module) if m.startswith(strangers)}


@pytest.mark.parametrize("module", [m for m in FILES if m.startswith(("lab.plots", "lab.results"))])
def test_plots_need_no_torch(module):
    source = FILES[module].read_text(encoding="utf-8")
    assert "import torch" not in source and "from torch" not in source


def outside(folder: Path) -> set[str]:
    """Top names of what the files of a folder import, inside functions, too."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
    return found - sys.stdlib_module_names - {"simplicit"}


def declared() -> tuple[set[str], dict[str, set[str]]]:
    """Distributions that `pyproject.toml` declares: the package's own, and those of each extra."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    return distributions(project["dependencies"]), {k: distributions(v) for k, v in extras.items()}


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", r)[0].lower().replace("_", "-") for r in requirements}


def test_no_file_has_the_name_of_a_standard_module():
    """A script that is started in its folder would import it in place of the other."""
    names = sys.stdlib_module_names - {"__init__", "__main__"}
    assert not [path for path in FILES.values() if path.stem in names]
    folders = {path.parent for path in FILES.values()} - {ROOT.parent}
    assert not [folder for folder in folders if folder.name in names]


def test_the_package_declares_the_libraries_that_it_imports_and_no_other():
    names = packages_distributions()
    imported = {names[module][0].lower().replace("_", "-") for module in outside(ROOT)}
    assert imported == declared()[0]


def test_the_tests_import_nothing_undeclared():
    names, (own, extras) = packages_distributions(), declared()
    helpers = {path.stem for path in TESTS.glob("*.py")}
    modules = outside(TESTS) - helpers
    # what a test skips without is of no extra
    imported = {names[module][0].lower().replace("_", "-") for module in modules if module in names}
    assert imported <= own | extras["dev"]


def test_extras_are_declared_and_asked_for():
    declared_extras = {key: value for key, value in declared()[1].items() if key in EXTRAS}
    assert {key: distributions([*names]) for key, names in EXTRAS.items()} == declared_extras
    sources = "".join(path.read_text("utf-8") for path in FILES.values())
    asked = set(re.findall(r'\bpackage\("(\w+)"\)', sources))
    assert asked == {name for names in EXTRAS.values() for name in names} | {"huggingface_hub"}
