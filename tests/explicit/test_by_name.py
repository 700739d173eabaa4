import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from simplicit.capture.read import capture
from simplicit.errors import InputError
from simplicit.explicit.by_name import ACTIVATIONS, build, load_weights


def test_an_fnn_is_flatten_linear_relu_linear() -> None:
    net = build("fnn", [12, 5, 3])
    u = torch.rand(2, 3, 4)
    first, last = net.get_parameter("1.weight"), net.get_parameter("3.weight")
    torch.testing.assert_close(net(u), torch.relu(u.flatten(1) @ first.T) @ last.T)
    assert len(list(net.parameters())) == 2


def test_biases_are_an_option() -> None:
    assert {name for name, _ in build("fnn", [4, 3, 2], bias=True).named_parameters()} == {
        "1.weight",
        "1.bias",
        "3.weight",
        "3.bias",
    }


def test_the_seed_fixes_the_weights_and_nothing_else() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second, other = (build("fnn", [4, 2], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.get_parameter("1.weight"), second.get_parameter("1.weight"))
    assert not torch.equal(first.get_parameter("1.weight"), other.get_parameter("1.weight"))


def test_a_class_is_imported_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mynets_of_this_test.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(width, 2)\n"
        "    def forward(self, u):\n"
        "        return self.layer(u)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    net = build("mynets_of_this_test:Net", [], arguments={"width": 3}, seed=1)
    assert net(torch.zeros(1, 3)).shape == (1, 2)
    with pytest.raises(InputError, match="did you mean Net?"):
        build("mynets_of_this_test:Nett", [])
    with pytest.raises(InputError, match="cannot be made with arguments {'size': 3}"):
        build("mynets_of_this_test:Net", [], arguments={"size": 3})


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no_such_package.nets:Net", "cannot import no_such_package.nets"),
        ("json:Net", "json has no Net"),
        ("os:getcwd", "makes a str; expected is a torch.nn.Module"),
        ("torch.nn:Linear", "cannot be made with arguments {}"),
    ],
)
def test_a_wrong_import_path_is_one_line(path: str, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        build(path, [])
    assert reason in str(caught.value)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def net() -> nn.Module:
    return build("fnn", [4, 3, 2], bias=True, seed=1)


def test_weights_come_back(net: nn.Module, tmp_path: Path) -> None:
    trained = build("fnn", [4, 3, 2], bias=True, seed=2)
    save_model(trained, str(tmp_path / "w.safetensors"))
    load_weights(net, tmp_path / "w.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(net.parameters(), trained.parameters(), strict=True)
    )


def test_weights_that_do_not_fit_are_named(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    good = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def line(tensors: dict[str, torch.Tensor]) -> str:
        save_file(tensors, str(path))
        with pytest.raises(InputError, match="^weights [^\n]+$") as caught:
            load_weights(net, path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert "missing 1.bias" in line({k: v for k, v in good.items() if k != "1.bias"})
    assert "not in the network 5.weight" in line(good | {"5.weight": torch.zeros(2)})
    assert "1.weight" in line(good | {"1.weight": torch.zeros(3, 5)})
    assert "1.bias holds NaN" in line(good | {"1.bias": torch.full((3,), float("nan"))})


def test_files_that_are_no_weights_are_named(net: nn.Module, tmp_path: Path) -> None:
    damaged = tmp_path / "w.safetensors"
    damaged.write_bytes(b"not safetensors at all")
    for path, reason in [
        (tmp_path / "none.safetensors", "no such file"),
        (damaged, "not a readable safetensors file"),
        (tmp_path, "not a readable safetensors file"),
    ]:
        with pytest.raises(InputError, match=f"^weights [^\n]+{reason}[^\n]*$"):
            load_weights(net, path)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_fnn_has_the_activation_asked_for(activation: str) -> None:
    net = build("fnn", (4, 3, 3, 2), activation=activation)
    assert isinstance(net, nn.Sequential)
    kinds = [type(layer) for layer in net]
    phi = ACTIVATIONS[activation]
    assert kinds == [nn.Flatten, nn.Linear, phi, nn.Linear, phi, nn.Linear]
    equations = capture(net, torch.rand(2, 4))
    assert {e.phi.name for e in equations.hidden} == {activation}
