"""The command line: run, compare, report, verify, bench, …; bad input is one line, code 2."""

import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from simplicit import __version__
from simplicit.errors import InputError, WorkerError
from simplicit.system import files
from simplicit.system.allocator import keep_freed

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn trained networks into sparse, certified implicit models.\n\n"
    "Example: simplicit run configs/digits.yaml",
)

STOPPED = 130
"""Exit code after Ctrl-C; recent versions of typer return it, older ones raise `Abort`."""

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""What ends a run so that it can be taken up: Ctrl-C, a scheduler or `timeout`, a closed terminal.
The exit code is 128 and the signal's number."""

GOES_ON = "stopped; the same command with --out and the run's folder goes on"
SAID = 0
"""Stands among the signals that came when this was said."""

WIDE = 160
"""Columns of the widest table, where no terminal says how many there are."""

Configuration = Annotated[Path, typer.Argument(help="A YAML file.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of CONFIG to change.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; a stopped run is taken up.")]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", help="Address of a Dask scheduler, whose workers take the work."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"simplicit {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    config: Configuration,
    overrides: Overrides = None,
    out: Out = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Train, match, evaluate, plot and report, as a YAML file says.

    Example: simplicit run configs/sparsity.yaml implicit.sparsity=0.9 --out s90
    """
    from simplicit.lab.config import config as configuration
    from simplicit.lab.run.run import advise, default_folder
    from simplicit.lab.run.run import run as execute

    settings = configuration.load(config, overrides or [])
    folder = out or default_folder(config.stem)
    advise(settings, lambda line: print(line, file=sys.stderr))
    print(f"run folder: {folder}", file=sys.stderr)
    with _cluster(scheduler) as executor:
        rows = execute(settings, folder, executor)
    _print_results(settings.evaluation.dataset, folder, rows, as_json)


@app.command()
def compare(
    config: Configuration,
    overrides: Overrides = None,
    out: Out = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Compare methods at several sparsities: implicit.sparsity may be a list.

    Example: simplicit compare configs/fashion-mnist-sparsity.yaml seeds=[0] --out curves
    """
    from simplicit.lab.config import config as configuration
    from simplicit.lab.run.compare import compare as execute
    from simplicit.lab.run.run import advise, default_folder

    settings = configuration.load_each(config, overrides or [])
    folder = out or default_folder(config.stem)
    advise(settings[0], lambda line: print(line, file=sys.stderr))
    print(f"folder of the comparison: {folder}", file=sys.stderr)
    with _cluster(scheduler) as executor:
        rows = execute(settings, folder, executor)
    _print_results(settings[0].evaluation.dataset, folder, rows, as_json)


# only a run on a cluster imports what speaks to it
@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    if address is None:
        yield None
        return
    from simplicit.workers.cluster import connected

    with connected(address) as client:
        yield client


def _print_results(dataset: str, folder: Path, rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"folder": str(folder), "metrics": rows}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{dataset}, {folder}")
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
def report(folder: Folder) -> None:
    """Draw the plots and write the report of a run folder again.

    Example: simplicit report runs/s90
    """
    from simplicit.lab.plots import COMPARED, draw_all
    from simplicit.lab.report.report import write_comparison, write_report
    from simplicit.lab.run.compare import runs
    from simplicit.system.lock import held

    runs(folder)  # a folder of something else is refused before it gets plots
    with ExitStack() as stack:
        stack.enter_context(held(folder))
        parts = runs(folder)
        for part in parts:
            if part != folder:
                stack.enter_context(held(part))
        for part in parts:
            draw_all(part)
            print(write_report(part))
        if parts != [folder]:
            draw_all(folder, COMPARED)
            print(write_comparison(folder))


@app.command()
def verify(folder: Folder, as_json: Json = False) -> None:
    """Recompute the results from the saved models alone and compare them with the record.

    Exit code 1 if a number differs.

    Example: simplicit verify runs/s90
    """
    from rich.console import Console
    from rich.table import Table

    from simplicit.lab.run.compare import runs
    from simplicit.lab.run.verify import verify as check

    parts = runs(folder)
    rows = [row for part in parts for row in check(part)]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        table = Table(title=f"verification of {folder}")
        for heading in ("seed", "quantity", "recorded", "recomputed", ""):
            table.add_column(heading)
        for row in rows:
            verdict = "same" if row["same"] else "DIFFERS"
            numbers = (_written(row["recorded"]), _written(row["recomputed"]))
            table.add_row(str(row["seed"]), row["quantity"], *numbers, verdict)
        Console().print(table)
    if not all(row["same"] for row in rows):
        sys.exit(1)


def _written(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


@app.command()
def bench(
    folder: Folder,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Samples a call; may be repeated.")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option("--threads", min=1, help="Threads; may be repeated.")
    ] = None,
    compiler: Annotated[
        bool, typer.Option("--torch-compile", help="Try torch.compile, too: minutes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Time a run's explicit network and implicit model on this machine, every way they can be run.

    Example: simplicit bench runs/s90 --batch 1 --batch 64 --threads 1
    """
    from rich.console import Console
    from rich.table import Table

    from simplicit.lab.evaluate.speed import BATCHES
    from simplicit.lab.run.bench import bench as execute

    rows = execute(folder, batches=batch or BATCHES, counts=threads, compiler=compiler)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(title=f"microseconds a sample, {folder}")
    for heading in ("of", "way", "threads", "batch", "median", "quartiles"):
        table.add_column(heading, justify="left" if heading in ("of", "way") else "right")
    for row in rows:
        spread = f"{1e3 * row['low']:.3g} – {1e3 * row['high']:.3g}"
        median = f"{1e3 * row['milliseconds']:.3g}"
        numbers = (str(row["threads"]), str(row["batch"]), median, spread)
        table.add_row("explicit" if row["dense"] else "implicit", row["way"], *numbers)
    Console().print(table)
    print(f"report: {folder / 'report.html'}")


@app.command()
def inspect(
    target: Annotated[str, typer.Argument(metavar="CONFIG|package.module:Class")],
    overrides: Overrides = None,
    shape: Annotated[
        str | None, typer.Option("--shape", help="One sample of a class, e.g. 3,32,32.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Calibration inputs.")] = 1000,
    as_json: Json = False,
) -> None:
    """Print a network's state equations: what is solved, what is kept, what it takes.

    Example: simplicit inspect torchvision.models:resnet18 --shape 3,224,224
    """
    from rich.console import Console

    from simplicit.lab.run import network_table as inspection

    work = inspection.work_of(target, overrides or [], shape)
    if as_json:
        print(json.dumps(inspection.summary(work, samples), indent=2))
        return
    expected = inspection.expect(work, samples)
    # a file or a pipe has no width; a terminal has its own
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(inspection.table(work.network, expected))
    for note in inspection.notes(work, expected, samples):
        print(note)


@app.command()
def plan(
    target: Annotated[str, typer.Argument(metavar="CONFIG|package.module:Class")],
    overrides: Overrides = None,
    workers: Annotated[
        list[int] | None,
        typer.Option("--workers", min=1, help="How many; may be repeated. 1, 2, 4, … 64 without."),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option("--bandwidth", help="MB/s to all workers; what is copied here without."),
    ] = None,
    latency: Annotated[float, typer.Option("--latency", help="Seconds to a worker.")] = 0.0,
    shape: Annotated[
        str | None, typer.Option("--shape", help="One sample of a class, e.g. 3,32,32.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="Calibration inputs; the configuration's without."),
    ] = None,
    sparsity: Annotated[float | None, typer.Option("--sparsity", help="Of a class.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a run takes here and with so many workers, and where more of them stop helping.

    Example: simplicit plan configs/digits.yaml --workers 1 --workers 8
    """
    from rich.console import Console

    from simplicit.lab.plan import plan as planning
    from simplicit.lab.plan import tables as shown

    planning.link_of(bandwidth, latency, 1.0)
    asked = planning.asked_of(target, overrides or [], shape, samples, sparsity)
    found = planning.plan(asked, workers or planning.WORKERS, bandwidth, latency)
    if as_json:
        print(json.dumps(shown.summary(found), indent=2))
        return
    # a file or a pipe has no width; a terminal has its own
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    for table in shown.tables(found):
        console.print(table)
    for note in shown.notes(found):
        print(note)


@app.command()
def data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, or an .npz file.")],
    folder: Annotated[Path, typer.Option("--dir", help="The data folder.")] = Path("data"),
) -> None:
    """Fetch a dataset if need be, check it, and describe it.

    Example: simplicit data FashionMNIST
    """
    from simplicit.data.datasets import load

    print(load(name, folder).describe())


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)


def main() -> None:
    """Run the command line; every foreseeable failure is one line on standard error.

    Raises:
        OSError: If it is none of the user's making; a bug, hence with its traceback.
    """
    keep_freed()
    with _stoppable() as came:
        try:
            code = app(standalone_mode=False)
        except InputError as error:
            _fail(str(error))
        except WorkerError as error:
            _fail(str(error), code=1)
        except OSError as error:
            where = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            if error.errno in FULL:
                _fail(f"{where}; what is finished is kept, the same command with --out goes on")
            if error.errno not in REFUSED:
                raise
            _fail(f"{where}; give a folder that can be written")
        except (KeyboardInterrupt, typer.Abort):
            code = STOPPED
        except Exception as error:
            # what click itself says of a wrong command line: its message has no traceback
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            # help was asked for by giving no command; it is printed already
            _fail(
                message()
                or "a command is needed: run, compare, report, verify, bench, inspect, plan or data"
            )
        if code == STOPPED:
            print(GOES_ON, file=sys.stderr)
            if came:
                code = 128 + came[0]
                came.append(SAID)
        sys.exit(code)


# The first signal stops the work as Ctrl-C does; a second one does not wait for what that takes.
@contextmanager
def _stoppable() -> Iterator[list[int]]:
    came: list[int] = []

    def stop(number: int, _: object) -> None:
        came.append(number)
        if len(came) == 1:
            raise KeyboardInterrupt
        files.leave()
        if SAID not in came:
            # not by print, in the middle of which the signal may have come
            os.write(2, f"{GOES_ON}\n".encode())
        os._exit(128 + number)

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    # in the background of a shell, or under nohup, some are not to be heard
    before = {n: old for n in numbers if (old := signal.getsignal(n)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        if not came:  # else the process is at its end, and threads may still take a while
            for number, old in before.items():
                signal.signal(number, old)


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
