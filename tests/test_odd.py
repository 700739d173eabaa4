"""A hundred odd things that people pass: each works, or is refused in one line before any solve."""

import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import simplicit
from interfaces import Net, Siamese, Words, mlp, numbers, words
from shapes import unchecked
from simplicit.errors import InputError
from simplicit.matching.layers import Matching

U = numbers(6)


class Empty:
    """An iterable of nothing."""

    def __iter__(self):
        return iter(())


def failing():
    yield U[:10]
    raise OSError("the disk is gone")


INPUTS: dict[str, Any] = {
    "None": None,
    "a number": 3,
    "a text": "cat.png",
    "bytes": b"abc",
    "a set": {1, 2},
    "nothing": [],
    "an empty tuple": (),
    "an empty table": {},
    "an empty iterable": Empty(),
    "no samples": U[:0],
    "one sample": U[:1],
    "a sample without its axis": U[0],
    "a scalar": torch.tensor(1.0),
    "NaN": U.clone().fill_(float("nan")),
    "one infinity": U.clone().index_fill(0, torch.tensor([3]), float("inf")),
    "zeros": torch.zeros(40, 6),
    "all alike": torch.ones(40, 6),
    "huge": U * 1e30,
    "tiny": U * 1e-30,
    "float64": U.double(),
    "float16": U.half(),
    "bfloat16": U.bfloat16(),
    "int64": U.long(),
    "int8": U.to(torch.int8),
    "uint8": U.to(torch.uint8),
    "bool": U > 0,
    "complex": U.to(torch.complex64),
    "too wide": numbers(7),
    "too narrow": numbers(5),
    "an image": numbers(3, 6, 6),
    "one axis too many": numbers(1, 6),
    "not contiguous": torch.randn(6, 40).T,
    "expanded": torch.randn(1, 6).expand(40, 6),
    "sparse": U.to_sparse(),
    "requires grad": U.clone().requires_grad_(),
    "with history": U.clone().requires_grad_() * 2,
    "a parameter": nn.Parameter(U.clone()),
    "on meta": torch.empty(40, 6, device="meta"),
    "NumPy": U.numpy(),
    "NumPy, int": U.long().numpy(),
    "NumPy, objects": np.array([["a"] * 6] * 4, dtype=object),
    "NumPy, read only": np.broadcast_to(np.float32(1.0), (40, 6)),
    "lists of numbers": U.tolist(),
    "list of samples": list(U),
    "list of arrays": [part.numpy() for part in U.split(10)],
    "list with None": [U[:10], None],
    "list with a text": [U[:10], "label"],
    "batches of other widths": [U[:10], numbers(7)[:10]],
    "batches of other dtypes": [U[:10], U[:10].double()],
    "empty batches among others": [U[:0], U[:10], U[:0]],
    "pairs": [(U[:10], torch.zeros(10)), (U[10:], torch.zeros(30))],
    "triples": [(U[:10], torch.zeros(10), "name")],
    "pairs the wrong way round": [(torch.zeros(10), U[:10])],
    "empty pairs": [(), ()],
    "tables": [{"input": U[:10], "labels": torch.zeros(10)}],
    "tables of another name": [{"image": U[:10]}],
    "tables of texts": [{"input": ["a"] * 10}],
    "an ordered table": OrderedDict(input=U),
    "nested pairs": [((U[:10], U[:10]), torch.zeros(10))],
    "a generator": (part for part in U.split(10)),
    "a generator that fails": failing,
    "a function": lambda: U,
    "a module": nn.Linear(6, 6),
    "a data set": torch.utils.data.TensorDataset(U),
    "a loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(U), batch_size=10),
    "a loader of triples": torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(U, torch.zeros(40), torch.ones(40)), batch_size=10
    ),
}


def narrow(width: int, outputs: int) -> nn.Module:
    """A network in which some layer may have no width."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, outputs))


NETWORKS: dict[str, tuple[Any, Any]] = {
    "None": (None, U),
    "a function": (torch.relu, U),
    "a class": (nn.Linear, U),
    "a table of weights": (mlp().state_dict(), U),
    "no layer": (nn.Sequential(), U),
    "no weights": (nn.ReLU(), U),
    "one layer": (nn.Linear(6, 3), U),
    "zero weights": (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), U),
    "a dead layer": (nn.Sequential(nn.Linear(6, 5), nn.Threshold(9e9, 0.0), nn.Linear(5, 2)), U),
    "outputs of no width": (narrow(5, 0), U),
    "a layer of no width": (narrow(0, 2), U),
    "on meta": (mlp().to("meta"), U),
    "in training": (mlp().train(), U),
    "batch norm in training": (nn.Sequential(nn.BatchNorm1d(6), mlp()).train(), U),
    "frozen": (mlp().requires_grad_(False), U),
    "quantised": (nn.Sequential(mlp(), nn.Identity()).to(torch.float64), U),
    "scripted": (None, U),
    "lazy": (nn.Sequential(nn.LazyLinear(5), nn.ReLU()), U),
    "two inputs, given one": (Siamese(), U),
    "two inputs, given three": (Siamese(), (U, U, U)),
    "ids out of the table": (Words(), words() + 100),
    "ids as text": (Words(), [["a", "b"]]),
    "a table, one missing": (Siamese(), {"a": U}),
    "a table, one too many": (Siamese(), {"a": U, "b": U, "c": U}),
    "two inputs of unlike m": (Siamese(), {"a": U, "b": U[:5]}),
    "fails": (Net(lambda s, x: 1 / 0, f=mlp()), U),
    "returns None": (Net(lambda s, x: None, f=mlp()), U),
    "returns a number": (Net(lambda s, x: 3.0, f=mlp()), U),
    "returns a text": (Net(lambda s, x: {"y": s.f(x), "note": "ok"}, f=mlp()), U),
    "returns classes": (Net(lambda s, x: s.f(x).argmax(1), f=mlp()), U),
    "returns truth": (Net(lambda s, x: s.f(x) > 0, f=mlp()), U),
    "returns its input": (Net(lambda s, x: x, f=mlp()), U),
    "returns its input, too": (Net(lambda s, x: (s.f(x), x), f=mlp()), U),
    "returns a constant, too": (Net(lambda s, x: (s.f(x), torch.ones(3)), f=mlp()), U),
    "returns complex": (Net(lambda s, x: torch.view_as_complex(s.f(x).view(-1, 2, 2)), f=mlp()), U),
    "returns the mean of the batch": (Net(lambda s, x: s.f(x).mean(0), f=mlp()), U),
    "returns a loss": (Net(lambda s, x: s.f(x).square().mean(), f=mlp()), U),
    "normalises over the batch": (Net(lambda s, x: s.f(x - x.mean(0)), f=mlp()), U),
    "sorts the batch": (Net(lambda s, x: s.f(x.sort(0)[0]), f=mlp()), U),
    "random": (Net(lambda s, x: s.f(x + torch.randn_like(x)), f=mlp()), U),
    "dropout that stays": (Net(lambda s, x: s.f(F.dropout(x)), f=mlp()), U),
    "a branch on the data": (Net(lambda s, x: s.f(x) if x.sum() > 0 else s.f(-x), f=mlp()), U),
    "a loop on the data": (Net(lambda s, x: s.f(x * int(x.abs().max())), f=mlp()), U),
    "a number of the data": (Net(lambda s, x: s.f(x * x.max().item()), f=mlp()), U),
    "NumPy inside": (Net(lambda s, x: s.f(torch.from_numpy(np.tanh(x.numpy()))), f=mlp()), U),
    "another network's gradient": (
        Net(lambda s, x: torch.autograd.grad(s.f(x.requires_grad_()).sum(), x)[0], f=mlp()), U,
    ),
    "nonzero entries": (Net(lambda s, x: s.f(x[x[:, 0] > 0]), f=mlp()), U),
    "unique entries": (Net(lambda s, x: s.f(x.unique(dim=0)), f=mlp()), U),
}  # fmt: skip


def answer(net: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """What comes of it: a model, a line, or a line that came too late."""
    solved = []
    begin = Matching.solve
    monkeypatch.setattr(Matching, "solve", lambda self: (solved.append(1), begin(self)))
    try:
        with unchecked():  # types are the first thing that is odd here
            model = simplicit.implicitize(net, inputs, sparsity=0.2, sweeps=0, workers=1)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) > 20
        assert not solved, f"refused after the solve: {error}"
        return str(error)
    assert all(bool(weight.isfinite().all()) for weight in model.learned)
    return "a model"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", INPUTS)
def test_odd_inputs(name, monkeypatch):
    inputs = INPUTS[name]
    if name == "a generator that fails":
        with pytest.raises(OSError, match="the disk is gone"):  # the caller's own
            simplicit.implicitize(mlp(), inputs(), sparsity=0.2)
        return
    torch.manual_seed(0)
    answer(mlp(), inputs, monkeypatch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_odd_networks(name, monkeypatch):
    net, inputs = NETWORKS[name]
    if name == "scripted":
        net = torch.jit.script(mlp())
    if name == "zero weights":
        for p in net.parameters():
            nn.init.zeros_(p)
    answer(net, inputs, monkeypatch)
