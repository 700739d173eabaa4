"""The run folder's `report.html`: one page without scripts or network, every image inside."""

import base64
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from .errors import InputError
from .files import replace_with
from .findings import MINUS, Row, layers, percent, results, summary
from .plots import FIGURES, SKIPPED, read
from .plots.matrices import layer_names

TEMPLATE = "report.html.jinja"


def write_report(run_dir: Path) -> Path:
    """Write `report.html` from what the run folder holds; what it lacks is named on the page.

    Args:
        run_dir: A run folder with `metrics.json`; its plots are those `plots.draw_all` has drawn.

    Returns:
        The path of the report.

    Raises:
        InputError: If `metrics.json` is missing, damaged or has no rows.
    """
    metrics = read.metrics(run_dir)
    if not metrics:
        raise InputError("metrics.json has no rows; accepted is one row or more per model")
    missing: list[str] = []

    def attempt(reader: Callable, file: str, *arguments: Any) -> Any:
        try:
            return reader(run_dir / file, *arguments)
        except InputError as error:
            missing.append(str(error))
            return None

    rows = attempt(read.table, "rows.csv", ("layer", "status", "relative_gap")) or []
    page = _template().render(
        dataset=", ".join(dict.fromkeys(str(r["dataset"]) for r in metrics if "dataset" in r)),
        folder=shlex.quote(run_dir.resolve().name),
        summary=summary(metrics),
        results=results(metrics),
        certificates=[row for row in metrics if "certificate_norm" in row],
        phases=list(dict.fromkeys(k for r in metrics for k in r if k.startswith("seconds_"))),
        layers=layers(rows, layer_names(run_dir)),
        figures=figures(run_dir),
        config=attempt(read.text, "config.yaml"),
        environment=_flat(attempt(read.from_json, "environment.json") or {}),
        missing=missing,
    )
    path = run_dir / "report.html"
    with replace_with(path) as file:
        file.write_text(page, "utf-8")
    return path


def figures(run_dir: Path) -> list[Row]:
    """Collect the figures as text that a page can hold.

    Args:
        run_dir: The run folder.

    Returns:
        For each figure `name`, `title`, `caption`, its `image` in base64 with the `width` to show
        it at, or, where that is empty, the `reason` why.
    """
    try:
        skipped = read.from_json(run_dir / "plots" / SKIPPED)
    except InputError:
        skipped = {}
    found = []
    for name, module in FIGURES.items():
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


def _template() -> jinja2.Template:
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
    return environment.get_template(TEMPLATE)


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
