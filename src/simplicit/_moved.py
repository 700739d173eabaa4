"""The module paths of release 0.1: each leads to the new place, with a `DeprecationWarning`.

They go with the release after the next one.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

FOLDERS = {
    "bounds": "certify intervals layer_boxes linear_bounds lipschitz mixed_monotone radii "
    "relaxation",
    "calibration": "channels:rows constraint:ball frontier match:structure moments states:batches",
    "capture": "affine layers:found moves:rearrange operations weighted",
    "convex": "blocks:products duality gram penalty problem prox solution solvers.design:shared "
    "solvers.scaled",
    "data": "augment cifar fetch idx npz",
    "equations": "blockwise:layer_phi equation fixed:maps.fixed fixed_maps:compose "
    "maps:weighted_maps one_pass:forward phi structured:operators",
    "explicit": "convnets networks:by_name",
    "lab": "baselines evaluate plots",
    "lab.baselines": "baselines.adversarial:robust baselines.decay:robust baselines.gmp "
    "baselines.ibp:robust baselines.magnitude baselines.obs baselines.random:magnitude "
    "baselines.spr baselines.sss baselines.wanda",
    "lab.baselines.tools": "baselines.finetune baselines.inputs baselines.search "
    "baselines.structures baselines.task baselines.weights",
    "lab.config": "config config_errors:errors sections",
    "lab.evaluate": "evaluate.attacks evaluate.corruptions evaluate.external evaluate.robustness "
    "evaluate.routes",
    "lab.plots": "plots.save plots.style",
    "lab.plots.figures": "plots.adversarial plots.comparison plots.curves plots.gap plots.layers "
    "plots.magnitudes plots.pattern plots.pixels plots.residual plots.robustness plots.sensitivity",
    "lab.report": "findings report robust_findings",
    "lab.results": "plots.matrices plots.read plots.shown",
    "lab.run": "compare inspect:network_table inspect_target:network_table measure run "
    "seed_run:seed verify",
    "matching": "checkpoint elimination_matching:layers layer_plan:plan layerwise:layers records",
    "model": "certificate equilibrium feedforward:to_torch fixed_point modules:to_torch",
    "model.archive": "archive:format archive_layers:equations_json packing",
    "outputs": "distance downstream path_norm sensitivity",
    "outputs.sweeps": "joint:sweeps",
    "refine": "dead:dead_states finetune robustify worst_case",
    "solvers": "estimator solvers.course:tiles solvers.tile:stages",
    "solvers.methods": "solvers.admm solvers.fista:first_order solvers.homotopy:coordinates "
    "solvers.newton solvers.supports",
    "sparsity": "budget coupled elimination:elimination.of_rows path refit support:choice",
    "system": "files memory progress threads",
    "": "suggest:errors",
}
"""New folder -> old paths; `old:new` where the file has another name, or its work another place."""


def _places(folders: dict[str, str]) -> dict[str, str]:
    places = {}
    for folder, names in folders.items():
        for entry in names.split():
            old, _, new = entry.partition(":")
            path = ["simplicit", *folder.split("."), new or old.rpartition(".")[2]]
            places[f"simplicit.{old}"] = ".".join(filter(None, path))
    return places


MOVED = _places(FOLDERS)
"""Old module -> new module, both with the package's name."""


class Face(ModuleType):
    """A package of which a name stays what it is when a module of that name is imported.

    The import system would set `simplicit.certify`, the function, to the old module.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in getattr(self, "__all__", ())):
            super().__setattr__(name, value)


class Moved(MetaPathFinder, Loader):
    """Imports an old path as a module with the names of the new one."""

    def find_spec(
        self, fullname: str, path: object, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for old paths only.

        Args:
            fullname: The module that is imported.
            path: Not used.
            target: Not used.

        Returns:
            A specification that this class loads, or None.
        """
        return ModuleSpec(fullname, self, is_package=True) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make an empty module.

        Args:
            spec: What `find_spec` has found.

        Returns:
            The module.
        """
        return Face(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module with the names at the new place.

        Args:
            module: The empty one.
        """
        old = module.__name__
        warnings.warn(
            f"{old} is now {MOVED[old]}; the old path goes with the release after the next one",
            DeprecationWarning,
            stacklevel=2,  # the import system's own frames are not counted
        )
        names = vars(import_module(MOVED[old])).items()
        own = {n: v for n, v in names if n == "__all__" or not n.startswith("__")}
        vars(module).update(own)


def install() -> None:
    """Let the import system ask `Moved`; first, as folders of caches may be left at old places."""
    sys.meta_path.insert(0, Moved())
    sys.modules["simplicit"].__class__ = Face
