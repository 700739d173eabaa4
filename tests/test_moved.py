"""The module paths of the first release answer for one release more."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import simplicit
from simplicit._moved import MOVED

FIRST_RELEASE = """
__main__ _types affine archive archive_layers augment baselines baselines.adversarial
baselines.decay baselines.finetune baselines.gmp baselines.ibp baselines.inputs
baselines.magnitude baselines.obs baselines.random baselines.search baselines.spr baselines.sss
baselines.structures baselines.task baselines.wanda baselines.weights blocks blockwise budget
capture certificate certify channels checkpoint cifar cli compare config config_errors
constraint convnets coupled data dead distance downstream duality elimination
elimination_matching equation equations equilibrium errors estimator evaluate evaluate.attacks
evaluate.corruptions evaluate.external evaluate.robustness evaluate.routes explicit feedforward
fetch files findings finetune fit fixed fixed_maps fixed_point frontier gram idx inspect
inspect_target intervals joint layer_boxes layer_plan layers layerwise linear_bounds lipschitz
maps match matching measure memory mixed_monotone model modules moments moves networks npz
one_pass operations packing path path_norm penalty phi plots plots.adversarial plots.comparison
plots.curves plots.gap plots.layers plots.magnitudes plots.matrices plots.pattern plots.pixels
plots.read plots.residual plots.robustness plots.save plots.sensitivity plots.shown plots.style
problem progress prox radii recipe records refit relaxation report robust_findings robustify run
sections seed_run sensitivity solution solvers solvers.admm solvers.course solvers.design
solvers.fista solvers.homotopy solvers.loop solvers.newton solvers.scaled solvers.supports
solvers.tile solvers.working_set states structured suggest support threads verify weighted
worst_case
""".split()


@pytest.fixture(autouse=True)
def not_yet_imported():
    """Warnings come with the first import only."""
    for name in MOVED:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", sorted(MOVED))
def test_an_old_path_has_the_names_of_the_new_one(name):
    with pytest.warns(DeprecationWarning) as caught:
        old, new = import_module(name), import_module(MOVED[name])
    assert str(caught[-1].message).startswith(f"{name} is now {MOVED[name]};")
    public = [n for n in getattr(new, "__all__", vars(new)) if not n.startswith("__")]
    assert public and all(getattr(old, n) is getattr(new, n) for n in public)


@pytest.mark.parametrize("name", FIRST_RELEASE)
def test_every_path_of_the_first_release_stays_or_has_moved(name):
    if f"simplicit.{name}" not in MOVED:
        import_module(f"simplicit.{name}")


def test_no_file_is_hidden_by_an_old_path():
    root = Path(simplicit.__file__).parent
    files = {p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.py")}
    files |= {path.removesuffix("/__init__") for path in files}
    assert not {f"simplicit.{path.replace('/', '.')}" for path in files} & set(MOVED)


def test_nothing_else_is_called_moved():
    assert {name.removeprefix("simplicit.") for name in MOVED} <= set(FIRST_RELEASE)


@pytest.mark.parametrize(
    ("line", "shown", "old"),
    [
        ("from simplicit.phi import Phi", "Phi.__module__", "simplicit.phi"),
        ("from simplicit import phi", "phi.Phi.__module__", "simplicit.phi"),
        ("import simplicit.plots.read", "simplicit.plots.read.table.__module__", "simplicit.plots"),
    ],
)
def test_every_way_to_import_warns_of_the_line_that_is_to_change(line, shown, old):
    lines = f"{line}\nprint({shown})"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in MOVED.values()
    assert done.stderr.startswith(f"<string>:1: DeprecationWarning: {old} is now {MOVED[old]};")


def test_functions_stay_beside_old_modules_of_their_names():
    with pytest.warns(DeprecationWarning):
        import_module("simplicit.certify")
        import_module("simplicit.baselines.magnitude")
        baselines = import_module("simplicit.baselines")
    assert simplicit.certify is import_module("simplicit.bounds.certify").certify
    new = import_module("simplicit.lab.baselines")
    assert baselines.magnitude is new.magnitude and callable(new.magnitude)


def test_no_other_name_is_answered():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_module("simplicit.no_such_module")
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(simplicit, "no_such_name")  # noqa: B009
