import json
import re
import sys

import pytest
import torch
from rich.console import Console

from conv_networks import KEPT, structured
from example_networks import captured
from simplicit import cli
from simplicit.lab.run import network_table as inspect
from simplicit.lab.run.network_table import work, work_of
from simplicit.matching.expected.estimate import Estimate
from simplicit.recipe import Recipe
from simplicit.system.rates import NOMINAL

CLASS = "conv_networks:ResNet20"


def expected(name: str, m: int = 100) -> Estimate:
    return work(structured(name), Recipe(sparsity=0.1)).estimate(m, NOMINAL)


def printed(name: str) -> str:
    console = Console(width=160, record=True)
    with console.capture() as capture:
        console.print(inspect.table(structured(name), expected(name)))
    asked = work(structured(name), Recipe(sparsity=0.1))
    return "\n".join([capture.get(), *inspect.notes(asked, expected(name), 100)])


@pytest.mark.parametrize("name", ["encoder layer", "concatenation", "matrix per channel"])
def test_every_equation_has_its_line(name):
    equations, text = structured(name), printed(name)
    every = inspect.lines(equations, expected(name))
    assert len(every) == len(equations.layers)
    assert all(e.name in text for e in equations.layers)
    kept = sum(line.phi.endswith("kept as it is") for line in every)
    assert kept == len(KEPT.get(name, [])) and all(k in text for k in equations.kept)
    # random weights have no zeros; what is kept has weights that are not solved for
    learned = sum(line.weights for line in every)
    assert learned <= equations.nonzeros and (kept or learned == equations.nonzeros)


def test_shared_weights_are_solved_once():
    every = inspect.lines(captured("shared"))
    assert [line.weights for line in every] == [36, 0, 18]
    assert [line.rows for line in every] == [6, 0, 3]


def test_every_phase_has_its_time_and_memory():
    found = inspect.summary(work(structured("encoder layer"), Recipe(sparsity=0.5)), 100)
    assert found["seconds"] == pytest.approx(sum(p["seconds"] for p in found["phases"].values()))
    assert found["memory"] == max(p["memory"] for p in found["phases"].values()) > 0
    own = sum(block["seconds"] for block in found["blocks"])
    outside = found["phases"]["sensitivity of the outputs"]["seconds"]
    assert own == pytest.approx(found["seconds"] - outside)


def test_a_class_and_a_configuration_are_read(tmp_path):
    assert len(work_of(CLASS, [], "3,32,32").network.hidden) == 19
    file = tmp_path / "some.yaml"
    file.write_text("explicit: {architecture: [64, 8, 10]}\nevaluation: {dataset: digits}\n")
    equations = work_of(str(file), ["explicit.bias=true"], None).network
    assert (equations.p, equations.n, equations.q) == (64, 8, 10)
    assert equations.hidden[0].bias is not None


def test_the_command_prints_a_table_or_json(monkeypatch, capsys):
    for extra in ([], ["--json"]):
        monkeypatch.setattr(
            sys, "argv", ["simplicit", "inspect", CLASS, "--shape", "3,8,8", *extra]
        )
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code
    text = capsys.readouterr().out
    table, found = text[: text.index("\n{")], json.loads(text[text.index("\n{") :])
    assert re.search(r"layer3\.2\.conv2 +│ relu +│ layer3\.2\.conv1 +│ layer3\.1\.conv2", table)
    assert len(found["blocks"]) == 20 and found["kept"] == [] and found["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CLASS], "--shape None: accepted is the shape"),
        ([CLASS, "--shape", "3,x"], "--shape 3,x: accepted"),
        ([CLASS, "a.b=1", "--shape", "3,8,8"], "accepted only with a configuration"),
        (["nothing.yaml"], "nothing.yaml"),
        (["nothing:Net", "--shape", "3"], "cannot import nothing"),
        ([CLASS, "--shape", "2,8,8"], r"does not run on inputs \(m, 2, 8, 8\)"),
    ],
)
def test_bad_input_is_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["simplicit", "inspect", *arguments])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


def test_torchvisions_resnet18_is_read_and_replayed():
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    from simplicit.capture.read import capture

    net = models.resnet18(weights=None).eval()
    u = torch.randn(2, 3, 224, 224)
    equations = capture(net, u)
    with torch.no_grad():
        y, replayed = net(u), equations.replay(u)[1]
    assert (replayed - y).abs().amax(1).le(1e-5 * y.abs().amax(1)).all()
    assert not equations.kept and equations.n == 2_508_800


def test_a_configuration_of_a_comparison_has_one_network(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text(
        "explicit: {architecture: [64, 8, 10]}\nevaluation: {dataset: digits}\n"
        "implicit: {sparsity: [0.5, 0.8]}\n"
    )
    assert work_of(str(file), [], None).network.n == 8
