import json

import pytest
import torch

import simplicit
from conv_networks import CONVOLUTIONAL, images, model, network
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel


@pytest.fixture
def saved(tmp_path):
    model("lenet").save(tmp_path)
    return tmp_path


def rewrite(folder, change) -> None:
    header = json.loads((folder / "model.json").read_text())
    change(header)
    (folder / "model.json").write_text(json.dumps(header))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_round_trip(name, tmp_path):
    some, u = model(name), images(4)
    some.save(tmp_path)
    again = simplicit.load(tmp_path)
    assert isinstance(again, ImplicitModel)
    with torch.no_grad():
        assert torch.equal(again(u), some(u))
    assert (again.nonzeros, again.sparsity) == (some.nonzeros, some.sparsity)
    for mine, yours in zip(again.parameters(), some.parameters(), strict=True):
        assert torch.equal(mine, yours) and not (mine == 0).logical_and(mine.signbit()).any()
    assert again.input_shape == some.input_shape and again.structure == "layered"
    net = network(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    again.load_into(net)
    with torch.no_grad():
        torch.testing.assert_close(net(u.clone()), some(u), rtol=1e-9, atol=1e-9)
    net.load_state_dict(before)


def test_sparse_weights_take_less_space(tmp_path):
    some, whole = model("resnet, option A"), model("resnet, option A")
    with torch.no_grad():
        for weight in some.learned:
            weight *= torch.rand_like(weight) < 0.05
    some.save(tmp_path / "sparse")
    whole.save(tmp_path / "dense")
    sizes = [(tmp_path / k / "model.safetensors").stat().st_size for k in ("sparse", "dense")]
    assert sizes[0] < 0.6 * sizes[1]


def test_a_damaged_file_is_noticed(saved):
    numbers = saved / "model.safetensors"
    numbers.write_bytes(numbers.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match="damaged"):
        simplicit.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["equations"].update({"is": "Path"}), "not the layers of a model"),
        (lambda h: h["equations"].pop("hidden"), "hidden"),
        (lambda h: h["equations"]["output"]["terms"][0].update(source=9), "reads a later layer"),
        (lambda h: h["weights"][0].update(nonzeros=1), "non-zeros, not 1"),
        (lambda h: h.update(weights=[]), "not the layers"),
        (lambda h: h["equations"].update(input_shape=[3, 5, 6]), "not the layers"),
    ],
)
def test_a_header_of_something_else_is_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(InputError, match=message) as caught:
        simplicit.load(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("op", ["os.system", "add_", "from_file.default", "prims.add", "_x.y"])
def test_only_operations_of_aten_that_read_no_file_are_accepted(op, tmp_path):
    model("group norm").save(tmp_path)

    def change(header) -> None:
        kept = [e for e in header["equations"]["hidden"] if e["phi"]["is"] == "Kept"]
        kept[0]["phi"]["op"] = op

    rewrite(tmp_path, change)
    with pytest.raises(InputError, match="accepted are those of torch.ops.aten"):
        simplicit.load(tmp_path)
