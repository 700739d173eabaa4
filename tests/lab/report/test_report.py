"""The report: true to its files, self-contained, and honest about what is missing."""

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fake_run import fake_run, metrics
from simplicit.errors import InputError
from simplicit.lab.plots import FIGURES, SKIPPED
from simplicit.lab.report.report import write_report

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVQI12P4z8DAwMAAAAYGAQBTWqZUAAAAAElFTkSuQmCC"
)


class Page(HTMLParser):
    """Elements with their attributes, the visible text, and whether every tag is closed."""

    VOID = {"meta", "img", "link", "br"}

    def __init__(self, html: str) -> None:
        HTMLParser.__init__(self)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += " " + " ".join(data.split())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = fake_run(tmp_path / "night run")
    (folder / "plots").mkdir()
    for name in FIGURES:
        (folder / "plots" / f"{name}.png").write_bytes(PNG)
    return folder


def report(run: Path) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    assert not list(run.glob(".*"))  # no temporary file is left
    return Page(path.read_text("utf-8"))


def test_it_holds_everything_itself(run):
    page = report(run)
    tags = [tag for tag, _ in page.elements]
    assert not {"script", "link", "iframe", "object", "form"} & set(tags)
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "href"]
    sources = [str(a["src"]) for tag, a in page.elements if tag == "img"]
    assert len(sources) == len(FIGURES)
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == PNG
    assert all(a["alt"] for tag, a in page.elements if tag == "img")
    assert "http" not in (run / "report.html").read_text("utf-8").replace("http-equiv", "")


def test_what_it_says_of_a_whole_run(run):
    text = report(run).text
    for expected in (
        "classifies 86.12 % of the test samples correctly, the explicit network 87.15 %",
        "1.03 points lost", "a sparsity of 75.00 %", "norm 0.9873 < 1 (nilpotent)",
        "found for all test samples", "means over 3 seeds", "hidden 1", "architecture: [784",
        "simplicit verify 'night run'", "threads.blas", "18.2",
    ):  # fmt: skip
        assert expected in text, expected
    assert "unfinished" not in text
    for figure in FIGURES.values():
        assert figure.CAPTION in text


def test_unfinished_run_names_what_is_missing(run):
    for file in ("config.yaml", "environment.json", "rows.csv", "model.json"):
        (run / file).unlink()
    (run / "plots" / "gap.png").unlink()
    (run / "plots" / "pixels.png").unlink()
    (run / "plots" / SKIPPED).write_text(json.dumps({"pixels": "the input is no image"}))
    (run / "metrics.json").write_text(json.dumps(metrics((0,))[:1]))
    text = report(run).text
    for file in ("config.yaml", "environment.json", "rows.csv"):
        assert f"{file} is missing from the run folder" in text
    assert "no implicit model yet" in text
    assert "Not drawn: plots/gap.png is missing" in text
    assert "Not drawn: the input is no image" in text
    assert "Certificate and convergence" not in text


def test_metrics_with_the_least_columns(tmp_path):
    (tmp_path / "metrics.json").write_text('[{"model": "implicit", "test_accuracy": NaN}]')
    assert "implicit" in report(tmp_path).text


@pytest.mark.parametrize("content", [None, "[]", "{}", '[{"seed": 1}]', "[{"])
def test_without_metrics_there_is_no_report(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(InputError, match="metrics.json") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_text_from_files_stays_text(run):
    evil = "<script>alert(1)</script>"
    (run / "config.yaml").write_text(f"explicit: {evil}\n")
    (run / "environment.json").write_text(json.dumps({evil: evil}))
    rows = metrics((0,))
    rows[1] |= {"dataset": evil, "certificate_method": evil}
    (run / "metrics.json").write_text(json.dumps(rows))
    page = report(run)
    assert "script" not in [tag for tag, _ in page.elements]
    assert page.text.count(evil) >= 5


def test_layer_table_counts_what_is_in_rows(run):
    lines = (run / "rows.csv").read_text().splitlines()
    trimmed = [line.replace("solved", "trimmed") for line in lines[1:21]]
    (run / "rows.csv").write_text("\n".join([lines[0], *trimmed, *lines[21:]]) + "\n")
    text = report(run).text
    assert "20 × trimmed" in text
    assert " 64 44 " in text.replace("  ", " ")
