"""The command line: run, report, verify, data. Bad input is one line and exit code 2."""

import errno
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from . import __version__
from .errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn trained networks into sparse, certified implicit models.",
)

Out = Annotated[Path | None, typer.Option("--out", help="Run folder; a stopped run is taken up.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"simplicit {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A YAML file.", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Keys to change.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train, match, evaluate, plot and report, as a YAML file says.

    Example: simplicit run configs/sparsity.yaml implicit.sparsity=0.9 --out runs/s90
    """
    from . import config as configuration
    from .run import advise
    from .run import run as execute

    settings = configuration.load(config, overrides or [])
    advise(settings, settings, lambda line: print(line, file=sys.stderr))
    folder = execute(settings, config.stem, out)
    rows = json.loads((folder / "metrics.json").read_text("utf-8"))
    if as_json:
        print(json.dumps({"folder": str(folder), "metrics": rows}, indent=2))
        return
    table = Table(title=f"{settings.evaluation.dataset}, {folder}")
    for heading in ("model", "seed", "test accuracy", "sparsity", "non-zeros", "seconds"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        table.add_row(
            row["model"],
            str(row["seed"]),
            f"{100 * row['test_accuracy']:.2f} %",
            f"{100 * row['sparsity']:.1f} %",
            f"{row['nonzeros']:,}",
            f"{row['seconds']:.1f}",
        )
    Console().print(table)
    print(f"report: {folder / 'report.html'}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]) -> None:
    """Draw the plots and write the report of a run folder again.

    Example: simplicit report runs/s90
    """
    from .plots import draw_all
    from .report import write_report

    draw_all(folder)
    print(write_report(folder))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")],
    as_json: Json = False,
) -> None:
    """Recompute the results from the saved model alone and compare them with the record.

    Exit code 1 if a number differs.

    Example: simplicit verify runs/s90
    """
    from .run import verify as check

    rows = check(folder)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        table = Table(title=f"verification of {folder}")
        for heading in ("seed", "quantity", "recorded", "recomputed", ""):
            table.add_column(heading)
        for row in rows:
            verdict = "same" if row["same"] else "DIFFERS"
            numbers = (f"{row['recorded']:.10g}", f"{row['recomputed']:.10g}")
            table.add_row(str(row["seed"]), row["quantity"], *numbers, verdict)
        Console().print(table)
    if not all(row["same"] for row in rows):
        raise typer.Exit(1)


@app.command()
def data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="FashionMNIST, MNIST or digits.")],
    folder: Annotated[Path, typer.Option("--dir", help="The data folder.")] = Path("data"),
) -> None:
    """Fetch a dataset if need be, check it, and describe it.

    Example: simplicit data FashionMNIST
    """
    from .data import load

    print(load(name, folder).describe())


def main() -> None:
    """Run the command line; every foreseeable failure is one line on standard error."""
    try:
        sys.exit(app(standalone_mode=False))
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror}; results are complete up to the last finished block")
    except (KeyboardInterrupt, typer.Abort):
        print(
            "stopped; the same command with --out and its folder takes the run up", file=sys.stderr
        )
        sys.exit(130)
    except Exception as error:
        # what click itself says of a wrong command line: its message has no traceback
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        _fail(message())


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
