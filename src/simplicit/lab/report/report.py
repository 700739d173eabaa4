"""The run folder's `report.html`: one page without scripts or network, every image inside."""

import base64
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2

from simplicit.errors import InputError
from simplicit.lab.plots import COMPARED, FIGURES, SKIPPED, figures_of
from simplicit.lab.report.findings import (
    MINUS,
    Row,
    cells,
    compared,
    kinds,
    layers,
    percent,
    results,
    summary,
)
from simplicit.lab.report.robust_findings import robust_cells, robust_checks
from simplicit.lab.report.time_findings import TIMED, faster, times
from simplicit.lab.report.unit_findings import CHANNELS, units
from simplicit.lab.results import read
from simplicit.lab.results.matrices import layer_names
from simplicit.system.files import replace_with

Reader = Callable[..., Any]


def write_report(run_dir: Path) -> Path:
    """Write `report.html` from what the run folder holds; what it lacks is named on the page.

    Without usable metrics there is no report, but an `InputError`.

    Args:
        run_dir: A run folder with `metrics.json`; its plots are those `plots.draw_all` has drawn.

    Returns:
        The path of the report.
    """
    metrics = _metrics(run_dir)
    missing: list[str] = []
    attempt = _attempt(run_dir, missing)
    measured, timed = ((run_dir / f"{name}.csv").exists() for name in ("robustness", "speed"))
    columns = ("model", "seed", "attack", "eps", "accuracy", "violations", "seconds")
    table = (attempt(read.table, "robustness.csv", columns) or []) if measured else []
    rows = attempt(read.table, "rows.csv", ("layer", "status", "relative_gap")) or []
    return _write(
        run_dir,
        "report.html.jinja",
        figures_of(run_dir),
        attempt,
        missing=missing,
        heading="A sparse implicit model of a trained network",
        dataset=_datasets(metrics),
        summary=summary(metrics),
        results=results(metrics),
        certificates=[row for row in metrics if "certificate_norm" in row],
        phases=list(dict.fromkeys(k for r in metrics for k in r if k.startswith("seconds_"))),
        layers=layers(rows, layer_names(run_dir)),
        times=times(attempt(read.table, "speed.csv", TIMED) or []) if timed else [],
        faster=faster(metrics),
        units=units(_optional(run_dir, "units.csv", attempt), layer_names(run_dir)),
        robust=robust_cells(table),
        checks=robust_checks(table),
    )


def write_comparison(folder: Path) -> Path:
    """Write `report.html` of a comparison: methods against sparsities, and their curves.

    Without usable metrics there is no report, but an `InputError`.

    Args:
        folder: What `compare` has written.

    Returns:
        The path of the report.
    """
    metrics = _metrics(folder)
    rows = [row for row in results(metrics) if row["seed"] != "mean"]
    explicit = [100 * read.number(r["test_accuracy"]) for r in rows if r["model"] == "explicit"]
    percents = [r | {"percent": 100 * read.number(r.get("test_accuracy"))} for r in rows]
    return _write(
        folder,
        "compare.html.jinja",
        COMPARED,
        _attempt(folder, []),
        missing=[],
        heading="Accuracy against sparsity, method by method",
        dataset=_datasets(metrics),
        summary=compared(rows),
        targets=sorted({row["target"] for row in rows if "target" in row}),
        kinds=kinds(rows),
        explicit=", ".join(f"{value:.2f} %" for value in explicit) or "not in this comparison",
        accuracy=cells(percents, "percent"),
        points=cells(rows, "points"),
        seconds=cells(rows, "seconds"),
    )


# a table that only some runs have
def _optional(run_dir: Path, file: str, attempt: Reader) -> list[Row]:
    return (attempt(read.table, file, CHANNELS) or []) if (run_dir / file).exists() else []


def _metrics(run_dir: Path) -> list[Row]:
    metrics = read.metrics(run_dir)
    if not metrics:
        raise InputError("metrics.json has no rows; accepted is one row or more per model")
    return metrics


def _datasets(metrics: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(str(r["dataset"]) for r in metrics if "dataset" in r))


# reads a file if it is there; what is not is said on the page
def _attempt(run_dir: Path, missing: list[str]) -> Reader:
    def attempt(reader: Reader, file: str, *arguments: Any) -> Any:
        try:
            return reader(run_dir / file, *arguments)
        except InputError as error:
            missing.append(str(error))
            return None

    return attempt


def _write(
    run_dir: Path, template: str, which: Mapping[str, ModuleType], attempt: Reader, **found: Any
) -> Path:
    page = (
        _environment()
        .get_template(template)
        .render(
            folder=shlex.quote(run_dir.resolve().name),
            figures=figures(run_dir, which),
            config=attempt(read.text, "config.yaml"),
            environment=_flat(attempt(read.from_json, "environment.json") or {}),
            **found,
        )
    )
    path = run_dir / "report.html"
    with replace_with(path) as file:
        file.write_text(page, "utf-8")
    return path


def figures(run_dir: Path, which: Mapping[str, ModuleType] = FIGURES) -> list[Row]:
    """Collect the figures as text that a page can hold.

    Args:
        run_dir: The run folder.
        which: The figures it should have.

    Returns:
        For each figure `name`, `title`, `caption`, its `image` in base64 with the `width` to show
        it at, or, where that is empty, the `reason` why.
    """
    try:
        skipped = read.from_json(run_dir / "plots" / SKIPPED)
    except InputError:
        skipped = {}
    found = []
    for name, module in which.items():
        path = run_dir / "plots" / f"{name}.png"
        image = path.read_bytes() if path.is_file() else b""
        reason = skipped.get(name, f"plots/{name}.png is missing; `simplicit report` draws it")
        found.append(
            {"name": name, "title": module.TITLE, "caption": module.CAPTION,
             "image": base64.b64encode(image).decode(), "reason": reason,
             # half of the PNG's own pixels, so that letters are as large in every figure
             "width": int.from_bytes(image[16:20], "big") // 2}
        )  # fmt: skip
    return found


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = {
        "percent": lambda value: percent(value) if math.isfinite(value) else str(value),
        "points": lambda value: f"{value:+.2f}",
        "count": lambda value: f"{value:,.0f}",
        "exact": lambda value: f"{value:.6g}",
        "rough": lambda value: f"{value:.2g}",
        "seconds": lambda value: f"{value:,.1f}",
        "size": lambda value: f"{value / 1000:,.1f}",
    }
    environment.filters |= {name: _known(format) for name, format in formats.items()}
    environment.filters["decimals"] = lambda value, digits: _known(f"{{:.{digits}f}}".format)(value)
    return environment


def _known(format: Callable[[float], str]) -> Callable[[Any], str]:
    # metrics rows need not have all keys: what is not there is a dash

    def write(value: Any) -> str:
        number = math.nan if isinstance(value, jinja2.Undefined) else read.number(value)
        if math.isnan(number):
            return "–"
        return format(number).replace("-", MINUS)

    return write


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    # nested settings become one table, keys joined by points
    table: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            table |= _flat(value, f"{prefix}{key}.")
        else:
            several = isinstance(value, list)
            table[prefix + key] = ", ".join(map(str, value)) if several else str(value)
    return table
