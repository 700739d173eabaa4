"""The command line: one line and an exit code for whatever goes wrong, an example in every help."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import simplicit
from simplicit import cli
from simplicit.data import datasets
from simplicit.explicit import training as explicit
from simplicit.model.saved import load
from small_run import DIGITS, NO_BUDGET, SMALL, contents, hurry

RUN = ("run", str(DIGITS), *SMALL, *NO_BUDGET)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`simplicit …` in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["simplicit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def one_error(result: tuple[int, str, str], says: str) -> None:
    code, out, err = result
    assert code == 2 and out == ""
    assert re.search(says, err), err
    assert [line.startswith("error: ") for line in err.splitlines()][-1]
    assert err.count("error: ") == 1 and "Traceback" not in err


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_what_needs_no_network_does_not_wait_for_torch(option):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['simplicit', {option!r}]\n"
        "try: runpy.run_module('simplicit', run_name='__main__')\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert not loaded & {
        "torch",
        "numpy",
        "scipy",
        "sklearn",
        "matplotlib",
        "pydantic",
        "jaxtyping",
    }
    assert "simplicit" in done.stdout


def test_version(call):
    assert call("--version") == (0, f"simplicit {simplicit.__version__}\n", "")


def test_the_module_runs_too():
    command = [sys.executable, "-m", "simplicit", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"simplicit {simplicit.__version__}\n" and done.stderr == ""


@pytest.mark.parametrize(
    "command", [(), ("run",), ("compare",), ("report",), ("verify",), ("plan",), ("data",)]
)
def test_every_help_has_an_example(call, command):
    code, out, err = call(*command, "--help")
    assert code == 0 and err == ""
    (example,) = re.findall(r"Example: (simplicit [^│\n]*)", out)
    assert example.split()[1] == (command[0] if command else "run")
    assert example.strip() == example.strip().rstrip("-")  # on one line
    arguments = example.split()
    if arguments[1] in ("run", "compare"):
        assert (DIGITS.parents[1] / arguments[2]).exists()


def test_no_command_prints_the_help_and_fails(call):
    code, out, err = call()
    assert code == 2 and "Commands" in out + err
    needed = "run, compare, report, verify, bench, inspect, plan or data"
    assert f"error: a command is needed: {needed}" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rum",), "No such command 'rum'"),
        (("run",), "Missing argument 'CONFIG'"),
        (("run", "a.yaml", "--ouf", "b"), "No such option"),
        (("run", "nowhere.yaml"), "nowhere.yaml: No such file"),
        (("run", str(DIGITS), "implicit.sparsty=0.5"), "sparsty: unknown key; did you mean"),
        (("run", str(DIGITS), "implicit.kappa=1.5"), "kappa = 1.5: accepted is a number above 0"),
        (("run", str(DIGITS), "kappa"), "override 'kappa': expected is key=value"),
        (("report", "nowhere"), "nowhere: no such run folder"),
        (("verify", "nowhere"), "nowhere"),
        (("data", "digit"), "no dataset 'digit': did you mean digits"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    call, tmp_path, monkeypatch, arguments, says
):
    monkeypatch.chdir(tmp_path)
    one_error(call(*arguments), says)
    assert contents(tmp_path) == {}


@pytest.mark.usefixtures("quick")
def test_a_run_prints_a_table_and_where_the_report_is(call, tmp_path):
    folder = tmp_path / "out"
    code, out, err = call(*RUN, "--out", folder)
    assert code == 0
    lines = out.splitlines()
    assert any("explicit" in line and "0.0 %" in line for line in lines)
    assert any("implicit" in line and "-" in line for line in lines)
    assert lines[-1] == f"report: {folder / 'report.html'}"
    assert f"run folder: {folder}" in err and "training" in err
    assert "implicit model: 100 %" in err
    assert "\x1b" not in out + err
    # the same command again finds everything done
    code, out, err = call(*RUN, "--out", folder, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["folder"] == str(folder)
    assert answer["metrics"] == json.loads((folder / "metrics.json").read_text())
    assert "training" not in err
    # another configuration does not
    before = contents(folder)
    one_error(
        call(*RUN, "implicit.alpha=7", "--out", folder),
        "out exists and holds another configuration: implicit.alpha is 0.01 there, 7.0 here; give",
    )
    assert contents(folder) == before


@pytest.mark.usefixtures("quick")
def test_notes_go_to_standard_error(call, tmp_path):
    only = ("evaluation.baselines=[explicit]", "implicit.workers=10000", "implicit.kappa=0.5")
    code, out, err = call(*RUN, *only, "--json", "--out", tmp_path / "out")
    assert code == 0 and len(json.loads(out)["metrics"]) == 1
    assert "note: workers: 10000 reduced to" in err and "note: kappa: 0.5 does nothing" in err


@pytest.mark.usefixtures("quick")
def test_without_out_the_folder_lies_in_runs(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(*RUN, "evaluation.baselines=[explicit]", "--json")
    assert code == 0
    assert re.fullmatch(r"runs/digits-\d{8}-\d{6}", Path(json.loads(out)["folder"]).as_posix())
    assert (tmp_path / json.loads(out)["folder"] / "report.html").exists()


@pytest.mark.usefixtures("quick")
def test_a_comparison_is_printed_reported_and_verified(call, tmp_path):
    folder = tmp_path / "out"
    two = ("implicit.sparsity=[0.5,0.75]", "evaluation.baselines=[explicit,implicit,random]")
    code, out, err = call("compare", DIGITS, *SMALL, *two, "--out", folder)
    assert code == 0 and out.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert out.count("implicit") == 2 and out.count("explicit") == 1
    page = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    code, out, _ = call("report", folder)
    assert code == 0 and len(out.splitlines()) == 3
    assert (folder / "report.html").read_bytes() == page
    code, out, _ = call("verify", folder, "--json")
    assert code == 0 and len(json.loads(out)) == 10
    one_error(call("run", DIGITS, *two), r"implicit\.sparsity = .*simplicit compare")


def test_missing_data_leaves_nothing(call, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MNIST", replace(datasets.MNIST, mirrors=()))
    where = ("evaluation.dataset=MNIST", f"data_dir={tmp_path / 'data'}", "--out", tmp_path / "out")
    one_error(call("run", DIGITS, *where), "MNIST")
    one_error(call("data", "MNIST", "--dir", tmp_path / "data"), "MNIST")
    assert contents(tmp_path) == {}


@pytest.mark.usefixtures("quick")
def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(call, tmp_path, monkeypatch):
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    command = (*RUN, "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("simplicit.fit.ImplicitModel.from_equations", stop)
        code, out, err = call(*command)
    assert code == 130 and out == ""
    last = err.splitlines()[-1]
    assert last == "stopped; the same command with --out and the run's folder goes on"
    assert not [name for name in contents(tmp_path) if "tmp" in Path(name).name]
    monkeypatch.setattr(explicit, "train", stop)
    assert call(*command)[0] == 0
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("file", ["explicit.safetensors", "model.json", "metrics.json", "rows.csv"])
def test_a_full_disk_is_one_line(call, tmp_path, monkeypatch, file):
    command = (*RUN, "--out", tmp_path / "out")
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        one_error(call(*command), "No space left on device")
    kept = contents(tmp_path / "out")
    assert file not in kept and not [name for name in kept if "tmp" in Path(name).name]
    assert call(*command)[0] == 0
    assert call("verify", tmp_path / "out")[0] == 0


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_one_line(call, tmp_path, monkeypatch, code):
    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = call(*RUN, "--out", tmp_path / "out")
    one_error(result, f"out: {os.strerror(code)}; give a folder that can be written")


def test_a_file_where_a_folder_should_be(call, tmp_path):
    (tmp_path / "file").write_text("mine")
    one_error(call(*RUN, "--out", tmp_path / "file"), "file is a file: give another folder")
    one_error(call(*RUN, "--out", tmp_path / "file" / "out"), "Not a directory; give a folder")


def test_a_folder_that_the_system_does_not_make_is_one_line(call, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "else")
    result = call(*RUN, "--out", tmp_path / "link" / "out")
    one_error(result, "link/out: no folder can be made there; give a folder that can be written")


@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), OSError(errno.EIO, "broken")])
def test_a_bug_keeps_its_traceback(monkeypatch, bug):
    def fail(*arguments: object) -> None:
        raise bug

    monkeypatch.setattr("simplicit.lab.config.config.load", fail)
    monkeypatch.setattr(sys, "argv", ["simplicit", *RUN])
    with pytest.raises(type(bug)):
        cli.main()


def test_verify_agrees_with_a_run(call, finished):
    code, out, err = call("verify", finished)
    assert (code, err) == (0, "") and out.count("same") == 10 and "DIFFERS" not in out
    code, out, _ = call("verify", finished, "--json")
    rows = json.loads(out)
    assert code == 0 and all(row["same"] for row in rows)
    quantities = ["nonzeros", "sparsity", "test_accuracy", "certificate_norm", "well_posed"]
    assert [(r["seed"], r["quantity"]) for r in rows] == [
        (s, q) for s in (0, 1) for q in quantities
    ]
    assert set(rows[0]) == {"model", "seed", "quantity", "recorded", "recomputed", "same"}


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        ("nonzeros", 1),
        ("sparsity", 0.99),
        ("test_accuracy", 1.0),
        ("certificate_norm", 0.1),
        ("well_posed", False),
        ("sparsity", None),
        ("test_accuracy", "high"),
    ],
)
def test_verify_finds_what_was_changed_in_the_metrics(call, copied, quantity, value):
    rows = json.loads((copied / "metrics.json").read_text())
    rows[3][quantity] = value
    (copied / "metrics.json").write_text(json.dumps(rows))
    code, out, _ = call("verify", copied, "--json")
    differing = [(r["seed"], r["quantity"]) for r in json.loads(out) if not r["same"]]
    assert code == 1 and differing == [(1, quantity)]
    code, out, _ = call("verify", copied)
    assert code == 1 and out.count("DIFFERS") == 1


def test_verify_finds_another_model(call, copied):
    model = load(copied / "seed-1")
    with torch.no_grad():
        row, column = model.learned[0].nonzero()[0].tolist()
        model.learned[0][row, column] = 0
    model.save(copied / "seed-1")
    code, out, _ = call("verify", copied)
    assert code == 1 and out.count("DIFFERS") >= 2
    shutil.copy(copied / "model.safetensors", copied / "seed-1")
    one_error(call("verify", copied), "damaged, or not of this model.json")


def test_verify_without_an_implicit_model(call, copied):
    rows = json.loads((copied / "metrics.json").read_text())
    (copied / "metrics.json").write_text(json.dumps(rows[::2]))
    one_error(call("verify", copied), "no implicit model is recorded, nothing to verify")


def test_report_writes_plots_and_report_again(call, copied):
    before = contents(copied)
    shutil.rmtree(copied / "plots")
    (copied / "report.html").unlink()
    assert call("report", copied) == (0, f"{copied / 'report.html'}\n", "")
    assert set(contents(copied)) == set(before)


def test_report_writes_nothing_into_a_folder_of_something_else(call, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    one_error(call("report", tmp_path), "metrics.json is missing from the run folder")
    assert contents(tmp_path) == {"notes.txt": b"mine"} and not (tmp_path / "plots").exists()


def test_data_describes_a_dataset(call, tmp_path):
    code, out, err = call("data", "digits", "--dir", tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith("digits: 1,297 training and 500 test images of 8 x 8, in [0, 1]\n")
    assert contents(tmp_path) == {}
