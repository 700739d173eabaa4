"""The README's example runs and prints what it says; its tree names every folder, and no other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def block(language: str, containing: str) -> str:
    """The fenced block in a language that contains some text."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (found,) = [text for kind, text in fences if kind == language and containing in text]
    return found


def tree() -> list[str]:
    """Paths of the folders in the README's tree: two spaces a level, a line of words after each."""
    above: list[str] = []
    folders = []
    for line in block("", "src/simplicit/").splitlines():
        name, *words = line.split()
        assert name.endswith("/"), f"{name} is not a folder"
        assert words, f"{name} has no description"
        above = [*above[: (len(line) - len(line.lstrip())) // 2], name]
        folders.append("".join(above).rstrip("/"))
    return folders


def test_the_tree_names_every_folder_once() -> None:
    inits = (ROOT / "src" / "simplicit").rglob("__init__.py")
    assert sorted(tree()) == sorted(p.parent.relative_to(ROOT).as_posix() for p in inits)


def test_it_is_read_in_one_sitting() -> None:
    assert len(README.splitlines()) <= 200


def test_the_place_of_the_measured_table_is_marked() -> None:
    _, rest = README.split("<!-- table:begin -->")
    table, _ = rest.split("<!-- table:end -->")
    lines = table.strip().splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == ["command", "figure"]
    assert all(line.startswith("|") and line.count("|") == 3 for line in lines)


def test_measured_commands_stand_on_the_page_of_results_too() -> None:
    table = README.split("<!-- table:begin -->")[1].split("<!-- table:end -->")[0]
    commands = re.findall(r"`(simplicit [^`]+)`", table)
    results = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert commands
    assert not [command for command in commands if command not in results]


def test_the_example_runs_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = block("python", "import simplicit")
    assert len([line for line in source.splitlines() if line.strip()]) <= 12
    exec(compile(source, "README.md", "exec"), {})
    printed, promised = capsys.readouterr().out, block("", "margin")
    number = r"\d+\.?\d*"
    assert re.sub(number, "#", printed) == re.sub(number, "#", promised)
    accuracy, sparsity, norm, margin = (float(text) for text in re.findall(number, printed))
    said = [float(text) for text in re.findall(number, promised)]
    # another processor rounds otherwise, and training amplifies that; the budget is exact
    assert accuracy == pytest.approx(said[0], abs=0.03)
    assert sparsity == said[1] == 0.75
    assert 0 < norm < 1
    assert norm + margin == pytest.approx(1, abs=0.05)
