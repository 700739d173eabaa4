"""One-shot methods for channels, groups of weights and ranks."""

from collections.abc import Callable
from functools import cache
from itertools import cycle

import pytest
import torch
from torch import Tensor, nn

from conv_networks import Stages
from simplicit.capture.read import capture
from simplicit.errors import InputError
from simplicit.explicit import training as explicit
from simplicit.explicit.convnets import ResNet20, StagewiseResNet20
from simplicit.lab import baselines
from simplicit.lab.baselines import SHAPED, Task, channels, low_rank, nm
from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.size import estimate_again, size, sizes

CHANNELS = ("channels_l1", "channels_taylor")
BUDGETED = (*CHANNELS, "svd", "svd_whitened")
GROUPED = ("wanda_nm", "sparsegpt_nm")


@cache
def dense() -> Task:
    """A trained network 8-16-12-3 on three classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 3
    values = torch.rand(3, 8, generator=generator)[labels]
    values = values + 0.05 * torch.randn(240, 8, generator=generator)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
    )
    explicit.train(net, values, labels, epochs=20, lr=0.01, batch_size=16)
    return Task(net, values[:100], values, labels)


class Small(nn.Module):
    """Convolutions with batch norm, a residual sum, pooling; modules out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 4, 3)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.first = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.norm, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, u: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(u)))
        x = torch.relu(x + self.norm2(self.second(x)))
        return self.head(nn.functional.avg_pool2d(x, 2).flatten(1))


def small(net: nn.Module | None = None) -> Task:
    torch.manual_seed(1)
    u = torch.randn(40, 4, 8, 8)
    made = net or Small()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return Task(made.eval(), u, u, torch.arange(40) % 3)


def residual(kind: Callable[[], nn.Module]) -> Task:
    torch.manual_seed(2)
    net = kind().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.bias, -0.5, 0.5)
    u = torch.rand(6, 3, 32, 32)
    return Task(net, u, u, torch.arange(6) % 3)


def parameters(net: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().double() for value in net.state_dict().values()])


# every method


@pytest.mark.parametrize("name", SHAPED)
def test_the_network_stays_and_the_result_is_one_of_its_class(name: str) -> None:
    task = small()
    task.net.requires_grad_(False)
    before, state = parameters(task.net).clone(), torch.random.get_rng_state()
    modes = [module.training for module in task.net.modules()]
    made = SHAPED[name](task, 0.5)
    assert torch.equal(parameters(task.net), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in task.net.modules()] == modes
    assert all(parameter.grad is None for parameter in task.net.parameters())
    assert type(made) is Small and not any(p.requires_grad for p in made.parameters())
    assert made(task.calibration).shape == (40, 3)
    torch.rand(3)
    assert torch.equal(parameters(SHAPED[name](task, 0.5)), parameters(made))


@pytest.mark.parametrize("name", SHAPED)
def test_a_run_counts_the_weights_that_are_there(name: str) -> None:
    task = small()
    made = SHAPED[name](task, 0.5)
    counted = capture(made, task.calibration[:2]).nonzeros
    assert counted == weights.nonzeros(made) <= 0.56 * weights.nonzeros(task.net)


@pytest.mark.parametrize("name", SHAPED)
def test_bad_input_is_one_line(name: str) -> None:
    for sparsity, told in ((1.0, "sparsity is 1.0"), (-0.1, "sparsity is -0.1")):
        with pytest.raises(InputError, match=told) as caught:
            SHAPED[name](small(), sparsity)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [n for n in SHAPED if n != "channels_bn"])
def test_networks_of_matrices_keep_their_classes_apart(name: str) -> None:
    task = dense()
    made = SHAPED[name](task, 0.25)
    assert weights.nonzeros(made) <= 0.8 * weights.nonzeros(task.net)
    assert explicit.accuracy(made, task.train_inputs, task.train_labels) > 0.8


# channels and ranks: a budget of weights or of multiply-adds


@pytest.mark.parametrize(
    ("name", "cost"), [*zip(BUDGETED, cycle(["weights", "multiply-adds"]), strict=False)]
)
def test_the_budget_is_met_as_near_as_channels_and_ranks_come(name: str, cost) -> None:
    task = residual(lambda: Stages(blocks=1))
    before = size(task, task.net, cost)
    for sparsity in (0.0, 0.4):
        made = SHAPED[name](task, sparsity, cost=cost)
        found = size(task, made, cost)
        assert (0.97 - sparsity) * before <= found <= round((1 - sparsity) * before)


def test_multiply_adds_by_hand() -> None:
    task = small()
    # 4 x 4 places of the first and the second
    expected = {"first": 16 * 8 * 4 * 9, "second": 16 * 8 * 8 * 9, "head": 32 * 3}
    names = {module: name for name, module in task.net.named_modules()}
    found = sizes(task, task.net, "multiply-adds")
    assert {names[layer]: count for layer, count in found.items()} == expected


def test_channels_that_do_nothing_go_first_and_change_nothing() -> None:
    task = small()
    with torch.no_grad():
        norm, norm2 = task.net.norm, task.net.norm2
        for name in ("weight", "bias"):
            getattr(norm, name)[[1, 4, 6]] = 0  # pyright: ignore
            getattr(norm2, name)[[1, 4, 6]] = 0  # pyright: ignore
        task.net.second.weight[:, [1, 4, 6]] = 0  # pyright: ignore
        task.net.second.weight[[1, 4, 6]] = 0  # pyright: ignore
        task.net.first.weight[[1, 4, 6]] = 0  # pyright: ignore
        task.net.head.weight[:, [4, 5, 6, 7]] = 0  # pyright: ignore
        expected = task.net(task.calibration)
    left = 5 * 4 * 9 + 5 * 5 * 9 + 5 * 4 * 3
    total = weights.nonzeros(task.net)
    for method in (baselines.channels_l1, baselines.channels_bn, baselines.channels_taylor):
        made = method(task, 1 - left / total)
        assert made.first.out_channels == made.second.in_channels == 5  # pyright: ignore
        with torch.no_grad():
            torch.testing.assert_close(made(task.calibration), expected)


def test_channels_that_a_shortcut_moves_stay() -> None:
    names = {}
    for kind in (ResNet20, StagewiseResNet20):
        task = residual(kind)
        task.net.requires_grad_(True)
        paths = {module: name for name, module in task.net.named_modules()}
        names[kind] = {paths[layer] for layer in channels._fixed(task, task.net)}
    # shortcut A puts a stage's channels into the middle of the next one's
    streams = {f"layer{i}.{j}.conv2" for i in (1, 2, 3) for j in (0, 1, 2)}
    assert names[ResNet20] == {"linear", "conv1"} | streams
    assert names[StagewiseResNet20] == {"linear"}


def test_every_layer_can_lose_the_same_part() -> None:
    task = dense()
    for method in (baselines.channels_l1, baselines.channels_taylor):
        made = method(task, 0.6, per_layer=True)
        widths = [layer.out_features for layer in made if isinstance(layer, nn.Linear)]  # pyright: ignore
        assert widths[2] == 3 and abs(widths[0] / 16 - widths[1] / 12) < 0.1


def test_taylor_reads_labels_only_where_it_is_asked_to() -> None:
    task = dense()
    wrong = Task(task.net, task.calibration, task.train_inputs, (task.train_labels + 1) % 3)
    without = [parameters(baselines.channels_taylor(t, 0.6)) for t in (task, wrong)]
    assert torch.equal(*without)
    read = [parameters(baselines.channels_taylor(t, 0.6, labelled=True)) for t in (task, wrong)]
    assert read[0].shape != read[1].shape or not torch.equal(*read)


def test_scales_are_needed_where_they_are_the_score() -> None:
    with pytest.raises(InputError, match="no batch normalisation with scales"):
        baselines.channels_bn(dense(), 0.5)


def test_a_network_of_one_layer_has_no_channels_to_lose() -> None:
    task = Task(nn.Sequential(nn.Linear(8, 3)), *(getattr(dense(), k) for k in DATA))
    with pytest.raises(InputError, match="no layer of the network can lose channels"):
        baselines.channels_l1(task, 0.5)


DATA = ("calibration", "train_inputs", "train_labels")


# groups of weights


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize(("sparsity", "n"), [(0.5, 2), (0.75, 1), (0.25, 3)])
def test_n_of_every_m_input_channels_stay(name: str, sparsity: float, n: int) -> None:
    made = SHAPED[name](small(), sparsity)
    for layer in weights.layers(made):
        at_a_place = layer.weight.detach().movedim(1, -1).unflatten(-1, (-1, 4))
        assert torch.equal((at_a_place != 0).sum(-1), torch.full(at_a_place.shape[:-1], n))


@pytest.mark.parametrize("name", GROUPED)
def test_layers_that_do_not_divide_stay_dense(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    u = torch.randn(20, 3, 8, 8)
    made = SHAPED[name](Task(net, u, u, torch.zeros(20, dtype=torch.int64)), 0.5)
    first, second = weights.layers(made)
    assert torch.equal(first.weight, net[0].weight)  # pyright: ignore
    assert int(second.weight.count_nonzero()) == second.weight.numel() // 2


@pytest.mark.parametrize("name", GROUPED)
def test_other_sparsities_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"accepted is 0, 0\.25, 0\.5, 0\.75"):
        SHAPED[name](small(), 0.6)


def moments(d: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(d)
    X = torch.randn(3 * d, d, dtype=torch.float64, generator=generator)
    X = X @ torch.randn(d, d, dtype=torch.float64, generator=generator)
    return X, X.T @ X


def test_the_columns_right_of_a_removed_one_make_up_for_it_exactly() -> None:
    d = 12
    X, H = moments(d)
    W = torch.randn(5, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    made = nm.compensated(W, H, 2, 4)
    # the last weights that stay are refitted given all those left of them, once none goes any more
    for w, w0 in zip(made, W, strict=True):
        last = int((w == 0).nonzero().max())
        free = slice(last + 1, d)
        rest = X @ w0 - X[:, : last + 1] @ w[: last + 1]
        torch.testing.assert_close(
            w[free], torch.linalg.lstsq(X[:, free], rest[:, None]).solution[:, 0]
        )


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, H = moments(40)
    W = torch.randn(6, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole = nm.compensated(W, H, 2, 4)
    monkeypatch.setattr(nm, "BLOCK", 8)
    torch.testing.assert_close(nm.compensated(W, H, 2, 4), whole)


def test_making_up_for_removed_weights_keeps_the_outputs_nearer() -> None:
    X, _ = moments(32)
    layer = nn.Linear(32, 10, bias=False).requires_grad_(False)
    task = Task(nn.Sequential(layer), X.float(), X.float(), torch.zeros(len(X), dtype=torch.int64))
    lost = [
        float((SHAPED[name](task, 0.5)(X.float()) - layer(X.float())).square().sum())
        for name in GROUPED
    ]
    assert lost[1] < 0.7 * lost[0]


# ranks


def test_factors_are_the_nearest_of_their_rank() -> None:
    X, H = moments(20)
    W = torch.randn(15, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for k in (1, 4, 9):
        A, B = low_rank.nearest(W, k)
        tail = torch.linalg.svdvals(W)[k:].square().sum()
        torch.testing.assert_close((W - A @ B).square().sum(), tail)
        A, B = low_rank.nearest(W, k, H)
        assert A.shape == (15, k) and B.shape == (k, 20)
        tail = torch.linalg.svdvals(X @ W.T)[k:].square().sum()
        torch.testing.assert_close((X @ (W - A @ B).T).square().sum(), tail)


def test_layers_of_low_rank_lose_nothing() -> None:
    task = small()
    layer = task.net.second
    with torch.no_grad():
        U, s, V = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)  # pyright: ignore
        layer.weight.copy_((U[:, :2] * s[:2] @ V[:2]).view_as(layer.weight))  # pyright: ignore
        first = task.net.first.weight  # pyright: ignore
        U, s, V = torch.linalg.svd(first.flatten(1), full_matrices=False)  # pyright: ignore
        first.copy_((U[:, :2] * s[:2] @ V[:2]).view_as(first))  # pyright: ignore
    for method in (baselines.svd, baselines.svd_whitened):
        made = method(task, 0.55)
        assert max(pair[0].out_channels for pair in (made.first, made.second)) >= 2  # pyright: ignore
        with torch.no_grad():
            torch.testing.assert_close(made(task.calibration), task.net(task.calibration))


def test_convolutions_in_groups_and_shared_weights_stay_dense() -> None:
    net = nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 16), nn.Linear(16, 3)
    )
    net[2].weight = net[0].weight
    task = Task(net, *(getattr(dense(), k) for k in DATA))
    made = baselines.svd(task, 0.2)
    assert [type(module) for module in made] == [  # pyright: ignore
        nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Sequential, nn.Linear
    ]  # fmt: skip


# batch normalisation


def test_statistics_are_those_of_what_is_read_now() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
    u = torch.randn(64, 4, 6, 6)
    before = [norm.momentum for norm in net.modules() if isinstance(norm, nn.BatchNorm2d)]
    estimate_again(net, u, batch=16)
    z = net[0](u).detach()
    torch.testing.assert_close(net[1].running_mean, z.mean((0, 2, 3)))
    parts = torch.stack([part.var((0, 2, 3)) for part in z.split(16)]).mean(0)
    torch.testing.assert_close(net[1].running_var, parts)
    assert [net[1].momentum] == before and net.training and net[1].training
