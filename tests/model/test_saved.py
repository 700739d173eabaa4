import json
import resource
import shutil
import struct
from pathlib import Path

import pytest
import torch

from random_models import PHIS, implicit_model, inputs, same
from simplicit.capture.read import capture
from simplicit.equations.phi import Phi
from simplicit.errors import InputError
from simplicit.explicit.convnets import LeNet, ResNet20
from simplicit.model.implicit import ImplicitModel
from simplicit.model.saved import load

FIXTURES = Path(__file__).parent / "archive" / "fixtures"
STRUCTURES = ["full", "triangular", "layered"]


def bits(model: ImplicitModel) -> dict[str, bytes]:
    return {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_a_round_trip_keeps_every_bit(tmp_path, structure, dtype, density, bias):
    model = implicit_model(structure, density=density, bias=bias, dtype=dtype)
    model.save(tmp_path)
    again = load(tmp_path)
    assert bits(again) == bits(model) and again.learned[0].dtype == dtype
    assert again.blocks == model.blocks and again.structure == model.structure
    assert again.input_shape == model.input_shape
    assert again.reference_nonzeros == model.reference_nonzeros
    assert (again.nonzeros, again.sparsity) == (model.nonzeros, model.sparsity)
    assert torch.equal(again(inputs(model)), model(inputs(model)))


def test_omega_and_slopes_survive(tmp_path):
    model = implicit_model("full", same(PHIS[1]))
    model.omega = torch.rand(12, dtype=torch.float64) + 0.1
    model.save(tmp_path)
    again = load(tmp_path)
    assert again.omega is not None and torch.equal(again.omega, model.omega)
    assert again.blocks[0].phi == model.blocks[0].phi == Phi("leaky_relu", 0.2)


def test_tiny_numbers_survive_and_negative_zeros_take_no_space(tmp_path):
    model = implicit_model("full", density=0.1)
    with torch.no_grad():
        model.learned[1][1] = 5e-324
        model.learned[1][2:] = 0.0
    expected = bits(model)
    with torch.no_grad():
        model.learned[1][2:] = -0.0
    model.save(tmp_path)
    assert bits(load(tmp_path)) == expected
    assert json.loads((tmp_path / "model.json").read_text())["weights"][1]["storage"] == "csr"


def test_sparse_models_are_small_and_hold_short_indices(tmp_path):
    model = implicit_model("full", input_shape=(1000,), density=0.05, dtype=torch.float32)
    model.save(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < 6 * model.nonzeros + 4000 < 4 * model.parameters_count
    content = (tmp_path / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    tensors = json.loads(content[8 : 8 + length])
    B = "learned.1"
    assert tensors[f"{B}.indices"]["dtype"] == "I16" and tensors[f"{B}.indptr"]["dtype"] == "I32"
    assert tensors[f"{B}.values"]["dtype"] == "F32" and B not in tensors


@pytest.mark.parametrize(("kind", "side"), [(LeNet, 28), (ResNet20, 32)])
@pytest.mark.parametrize(("part", "most"), [(0.0, 1.05), (0.9, 0.3)])
def test_files_are_not_larger_than_the_network(tmp_path, kind, side, part, most):
    torch.manual_seed(0)
    net = kind().eval()
    model = ImplicitModel.from_equations(
        capture(net, torch.randn(2, 1 if kind is LeNet else 3, side, side))
    )
    with torch.no_grad():
        for weight in model.learned:
            least = weight.abs().flatten().quantile(part) if part else -1.0
            weight[weight.abs() <= least] = 0.0
    model.save(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size <= most * sum(4 * p.numel() for p in net.parameters())
    assert bits(load(tmp_path)) == bits(model)


def test_header_is_readable_and_true(tmp_path):
    model = implicit_model("layered", density=0.6)
    model.save(tmp_path / "a" / "b")
    header = json.loads((tmp_path / "a" / "b" / "model.json").read_text())
    assert (header["format"], header["version"]) == ("simplicit", 3)
    assert header["structure"] == "layered" and header["input_shape"] == [2, 3]
    assert [block["name"] for block in header["blocks"]] == ["fc3", "fc2", "fc1"]
    counted = [entry["nonzeros"] for entry in header["weights"]]
    assert counted == [int(weight.count_nonzero()) for weight in model.learned]


def test_nothing_else_is_left_in_the_folder(tmp_path):
    implicit_model("full").save(tmp_path)
    implicit_model("triangular").save(tmp_path)  # replaces the first
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.safetensors"}
    assert load(tmp_path).structure == "triangular"


def one_line(folder, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path):
    one_line(tmp_path / "nowhere", "no readable model.json and model.safetensors")
    implicit_model("full").save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    one_line(tmp_path, "No such file")


@pytest.mark.parametrize("place", [3, 300, -1])
def test_a_flipped_bit_is_noticed(tmp_path, place):
    implicit_model("full").save(tmp_path)
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    one_line(tmp_path, "damaged, or not of this model.json")


def test_a_truncated_file_is_noticed(tmp_path):
    implicit_model("full").save(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    one_line(tmp_path, "SHA-256")


def test_a_header_of_another_model_is_noticed(tmp_path):
    implicit_model("full").save(tmp_path / "a")
    implicit_model("full", seed=5).save(tmp_path / "b")
    (tmp_path / "a" / "model.json").replace(tmp_path / "b" / "model.json")
    one_line(tmp_path / "b", "SHA-256")


@pytest.mark.parametrize("name", ["layered", "triangular", "full", "convolutions"])
def test_files_of_the_first_release_still_load_to_the_same_bits(name):
    folder = FIXTURES / name
    model, expected = load(folder), json.loads((folder / "expected.json").read_text())
    like = model.learned[0]
    assert model.structure == ("layered" if name == "convolutions" else name)
    assert model.nonzeros == expected["nonzeros"]
    for letter, values in expected.get("matrices", {}).items():
        view = getattr(model, letter)
        if values is None:
            assert view is None
        else:
            view = view if letter in "bd" else view.to_dense()
            assert torch.equal(view.detach(), torch.tensor(values, dtype=like.dtype))
    for mine, values in zip(model.parameters(), expected.get("learned", []), strict=False):
        assert torch.equal(mine.detach(), torch.tensor(values, dtype=like.dtype))
    if expected.get("omega"):
        assert model.omega is not None and model.omega.tolist() == expected["omega"]
    u, y = (torch.tensor(expected[k], dtype=like.dtype) for k in ("inputs", "outputs"))
    torch.testing.assert_close(model(u).detach(), y)


@pytest.mark.parametrize("name", ["layered", "triangular", "full", "convolutions"])
def test_files_of_the_first_release_are_saved_anew_without_a_change(name, tmp_path):
    old = load(FIXTURES / name)
    old.save(tmp_path)
    again = load(tmp_path)
    assert bits(again) == bits(old) and again.structure == old.structure
    names = [[(b.name, b.size, b.phi.name) for b in some.blocks] for some in (again, old)]
    assert names[0] == names[1] and again.reference_nonzeros == old.reference_nonzeros


def edited(folder: Path, change) -> None:
    file = folder / "model.json"
    header = json.loads(file.read_text())
    change(header)
    file.write_text(json.dumps(header))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(version=2), "version: Input should be 1"),
        (lambda h: h.update(structure="round"), "structure: "),
        (lambda h: h.pop("blocks"), "blocks: Field required"),
        (lambda h: h.update(extra=1), "extra: Extra inputs"),
        (lambda h: h["blocks"][0].update(size="3"), "blocks.0.size: Input should be a valid int"),
        (lambda h: h["blocks"][0].update(size=4), r"A of shape \(10, 10\): accepted is \(11, 11\)"),
        (lambda h: h["matrices"]["A"].update(nonzeros=1), "its header says 1"),
        (lambda h: h["matrices"]["A"].update(shape=[2, 2]), "does not fit model.safetensors"),
        (lambda h: h["matrices"]["B"].update(storage="dense"), "does not fit model.safetensors"),
        (lambda h: h["matrices"].pop("D"), "does not fit model.safetensors"),
        (lambda h: h.update(vectors=["d", "b", "x"]), "vectors.2: "),
        (lambda h: h["blocks"][0].update(phi="softplus"), "blocks.0.phi: "),
    ],
)
def test_an_old_header_that_was_edited_is_one_line(tmp_path, change, message):
    shutil.copytree(FIXTURES / "full", tmp_path / "full")
    edited(tmp_path / "full", change)
    one_line(tmp_path / "full", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(version=4), "version 4: accepted are 1 to 3"),
        (lambda h: h.update(structure="round"), "structure 'round' .* accepted are full"),
        (lambda h: h.update(structure="triangular"), "states reads a later layer"),
        (lambda h: h.update(reference_nonzeros="9"), "reference_nonzeros '9'"),
        (lambda h: h["equations"]["hidden"][0]["terms"][0].update(source=1), "a later layer"),
        (
            lambda h: h["equations"]["hidden"][0]["phi"]["blocks"][0].update(size=4),
            "not the layers",
        ),
        (lambda h: h["weights"][0].update(nonzeros=1), "non-zeros, not 1"),
        (lambda h: h.pop("equations"), "not the layers of a model"),
    ],
)
def test_a_header_that_was_edited_is_one_line(tmp_path, change, message):
    implicit_model("full", density=0.2).save(tmp_path)
    edited(tmp_path, change)
    one_line(tmp_path, message)


def test_a_header_that_is_no_json_is_one_line(tmp_path):
    implicit_model("full").save(tmp_path)
    (tmp_path / "model.json").write_text("{ half")
    one_line(tmp_path, "model.json: no JSON")


def test_a_full_disk_leaves_the_old_model_and_nothing_else(tmp_path):
    old = implicit_model("full")
    old.save(tmp_path)
    large = implicit_model("full", input_shape=(4000,))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot write the model .File too large") as caught:
            large.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.safetensors"}
    assert bits(load(tmp_path)) == bits(old)


def test_an_interrupt_leaves_the_old_model_and_nothing_else(tmp_path, monkeypatch):
    old = implicit_model("full")
    old.save(tmp_path)

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simplicit.model.archive.format.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        implicit_model("full", seed=1).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.safetensors"}
    assert bits(load(tmp_path)) == bits(old)


def test_a_file_in_the_way_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot write the model"):
        implicit_model("full").save(tmp_path / "taken")
