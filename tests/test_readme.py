"""The README's example runs and prints what it says; its tree names every file, and no other."""

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


def tree() -> set[str]:
    """Paths of the files in the README's tree: two spaces a level, folders end with a slash."""
    folders: list[str] = []
    files = set()
    for line in block("", "src/simplicit/").splitlines():
        if not line.strip() or line.strip().startswith("#"):
            continue
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            assert len(line.split()) > 1, f"{name} has no description"
            files.add("".join(folders) + name)
    return files


def test_the_tree_names_every_file_once() -> None:
    package = ROOT / "src" / "simplicit"
    paths = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert tree() == {path.relative_to(ROOT).as_posix() for path in paths}


def test_files_it_links_to_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_configurations_it_names_exist() -> None:
    names = set(re.findall(r"configs/[\w-]+\.yaml", README))
    assert names
    assert not [name for name in names if not (ROOT / name).exists()]


def test_the_place_of_the_measured_table_is_marked() -> None:
    _, rest = README.split("<!-- table:begin -->")
    table, _ = rest.split("<!-- table:end -->")
    lines = table.strip().splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == ["command", "figure"]
    assert all(line.startswith("|") and line.count("|") == 3 for line in lines)


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
