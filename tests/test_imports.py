"""Imports go one way, mathematics knows no pipeline, judges know no solver.

Only imports at the top of a file count: one inside a function (`model.save` reaching for `archive`)
is how an object offers a convenience from below without depending on it.
"""

import ast
from pathlib import Path

import pytest

import simplicit

ROOT = Path(simplicit.__file__).parent

FOUNDATIONS = ["errors", "memory", "_types", "phi", "blockwise", "fixed", "maps", "fixed_maps"]
MATHEMATICS = [
    "blocks",
    "prox",
    "gram",
    "duality",
    "penalty",
    "problem",
    "solution",
    "solvers",
    "fixed_point",
    "equilibrium",
]
MATHEMATICS += ["equation", "equations", "feedforward", "certificate", "structured", "one_pass"]
MATHEMATICS += ["modules", "model", "intervals", "lipschitz", "mixed_monotone", "relaxation"]
MATHEMATICS += ["linear_bounds", "layer_boxes", "radii"]
PIPELINE = ["capture", "states", "match", "fit", "certify", "evaluate", "archive", "data"]
PIPELINE += ["explicit", "config", "baselines", "plots", "report", "run", "cli"]
LAYOUT = FOUNDATIONS + MATHEMATICS + PIPELINE
"""Top to bottom; `config` lies below the datasets, networks and attacks whose names it accepts.

A file that is not listed must only keep the graph acyclic.
"""

OUTSIDE = {"json", "pathlib", "os", "shutil", "safetensors", "omegaconf", "yaml", "pydantic"}
OUTSIDE |= {"matplotlib", "rich", "typer", "pooch", "requests", "sklearn", "joblib", "logging"}
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


def unit(module: str) -> str:
    """A folder counts as one place in the layout."""
    return module.split(".")[0]


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
    assert {"gram", "prox"} <= GRAPH["problem"] and "solvers.design" in GRAPH["solvers.loop"]


@pytest.mark.parametrize("module", [m for m in FILES if m])
def test_no_file_reaches_itself(module):
    circle = [m for m in GRAPH[module] if m == module or module in reachable(m)]
    assert not circle


def test_imports_go_from_top_to_bottom():
    place = {name: i for i, name in enumerate(LAYOUT)}
    backward = [
        f"{module} imports {name}"
        for module, names in GRAPH.items()
        for name in names
        if {unit(module), unit(name)} <= place.keys() and place[unit(name)] > place[unit(module)]
    ]
    assert not backward


@pytest.mark.parametrize("module", [m for m in FILES if unit(m) in FOUNDATIONS + MATHEMATICS])
def test_mathematics_imports_mathematics_only(module):
    strangers = {name for name in GRAPH[module] if unit(name) not in FOUNDATIONS + MATHEMATICS}
    assert not strangers


@pytest.mark.parametrize("module", [m for m in FILES if unit(m) in FOUNDATIONS + MATHEMATICS])
def test_mathematics_reads_no_file_and_prints_nothing(module):
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    used = set()
    for node in top(tree):
        imported = node.names if isinstance(node, ast.Import) else []
        names = [a.name for a in imported] or [getattr(node, "module", "") or ""]
        used |= {name.split(".")[0] for name in names if not getattr(node, "level", 0)}
    # a model's own convenience may name a path in a signature; the loop runs tiles side by side
    allowed = {"model": {"pathlib"}, "solvers.loop": {"joblib"}}.get(module, set())
    assert not used & (OUTSIDE - allowed)
    calls = {
        n.func.id
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    assert not calls & {"print", "open", "input"}


@pytest.mark.parametrize("module", [m for m in FILES if unit(m) == "evaluate"])
def test_judges_know_no_solver(module):
    assert not {m for m in reachable(module) if unit(m) in ("solvers", "fit", "baselines")}


@pytest.mark.parametrize("module", [m for m in FILES if unit(m) == "plots"])
def test_plots_need_no_torch(module):
    source = FILES[module].read_text(encoding="utf-8")
    assert "import torch" not in source and "from torch" not in source
