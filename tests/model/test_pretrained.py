"""Folders as Hugging Face keeps them: the same model again, a card that parses, and the hub."""

import json
import re
import shutil
import sys
from types import ModuleType

import pytest
import torch
import yaml

from random_models import implicit_model, inputs
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel

FILES = ["README.md", "config.json", "model.json", "model.safetensors"]


@pytest.mark.parametrize(
    "structure, dtype", [("full", torch.float64), ("triangular", torch.float32)]
)
def test_a_round_trip_keeps_every_bit(tmp_path, structure, dtype):
    model = implicit_model(structure, density=0.3, dtype=dtype)
    model.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == FILES
    again = ImplicitModel.from_pretrained(tmp_path / "model")
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert again.state_dict()[name].dtype == value.dtype
        assert torch.equal(again.state_dict()[name], value)
    assert str(again.certificate) == str(model.certificate)
    assert torch.equal(again(inputs(model)), model(inputs(model)))


def test_the_card_has_the_figures_and_yaml_above_them(tmp_path):
    model = implicit_model("triangular", density=0.4)
    figures = {"accuracy": 0.95412, "odd|name\n---": 3, "data": "digits: 'all'\n# of them"}
    model.save_pretrained(tmp_path / "my model", figures)
    text = (tmp_path / "my model" / "README.md").read_text("utf-8")
    empty, front, page = text.split("---\n", 2)
    table = yaml.safe_load(front)
    assert not empty and table["library_name"] == "simplicit"
    assert table["metrics"] == ["accuracy", "odd|name\n---"]
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    rows = {first.removeprefix("| "): second.removesuffix(" |") for first, second in lines[1:]}
    assert rows["structure"] == "triangular" and rows["states"] == str(model.n)
    assert rows["non-zero weights"] == f"{model.nonzeros} of {model.reference_nonzeros}"
    assert float(rows["sparsity"]) == pytest.approx(model.sparsity, abs=1e-4)
    assert rows["certificate"] == str(model.certificate)
    assert rows["accuracy"] == "0.9541" and rows["data"] == "digits: 'all' # of them"
    assert rows["odd\\|name ---"] == "3" and "# my model\n" in page


def test_the_call_on_the_card_runs(tmp_path, monkeypatch):
    model = implicit_model("layered")
    model.float().save_pretrained(tmp_path)
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text("utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    found: dict[str, torch.Tensor] = {}
    exec(code[0], found)
    assert found["y"].shape == (1, model.q)


def test_a_damaged_folder_is_refused_in_one_line(tmp_path):
    model = implicit_model("layered")
    model.save_pretrained(tmp_path)
    numbers = tmp_path / "model.safetensors"
    numbers.write_bytes(numbers.read_bytes()[:-1] + b"\7")
    with pytest.raises(InputError, match=r"^[^\n]*damaged[^\n]*$"):
        ImplicitModel.from_pretrained(tmp_path)
    numbers.unlink()
    with pytest.raises(InputError, match=r"^[^\n]*no readable[^\n]*$"):
        ImplicitModel.from_pretrained(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line_and_nothing_is_left(tmp_path, monkeypatch):
    model = implicit_model("layered")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^[^\n]*cannot write the model[^\n]*$"):
        model.save_pretrained(tmp_path / "file" / "model")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        model.save_pretrained(tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())


def test_the_hub_is_asked_through_its_own_library_and_only_for_an_id(tmp_path, monkeypatch):
    model = implicit_model("layered")
    asked = []

    def snapshot_download(name: str, **options: object) -> str:
        asked.append((name, options))
        if name == "no/where":
            raise OSError("404: not found\nand more")
        return str(tmp_path / "fetched")

    hub = ModuleType("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download, raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    model.save_pretrained(tmp_path / "fetched")
    ImplicitModel.from_pretrained(tmp_path / "fetched")
    assert not asked
    again = ImplicitModel.from_pretrained("owner/name", revision="v1")
    assert torch.equal(again(inputs(model)), model(inputs(model)))
    wanted = ["model.json", "model.safetensors"]
    assert asked == [("owner/name", {"revision": "v1", "allow_patterns": wanted})]
    with pytest.raises(InputError, match=r"^no/where: [^\n]*404: not found\)$"):
        ImplicitModel.from_pretrained("no/where")


def test_without_its_library_an_id_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="^huggingface_hub is not installed: pip install"):
        ImplicitModel.from_pretrained("owner/name")
    for name in ("nowhere", "/a/b/c", "owner/name/more"):
        with pytest.raises(InputError, match="accepted are a folder of save_pretrained and an id"):
            ImplicitModel.from_pretrained(name)


def test_config_json_says_what_it_is_and_older_folders_are_read(tmp_path):
    model = implicit_model("layered", dtype=torch.float32)
    model.save_pretrained(tmp_path / "new")
    config = json.loads((tmp_path / "new" / "config.json").read_text("utf-8"))
    assert config["model_type"] == "simplicit" and config["torch_dtype"] == "float32"
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    for name in ("README.md", "config.json"):
        (tmp_path / "old" / name).unlink()
    assert ImplicitModel.from_pretrained(tmp_path / "old").nonzeros == model.nonzeros
    with pytest.raises(InputError, match="accepted is a hub id"):
        ImplicitModel.from_pretrained(tmp_path / "old", revision="v1")
