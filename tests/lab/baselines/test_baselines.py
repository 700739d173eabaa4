import math
from dataclasses import replace
from functools import cache
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplicit.errors import InputError
from simplicit.explicit import training as explicit
from simplicit.explicit.convnets import ResNet20, StagewiseResNet20
from simplicit.lab import baselines
from simplicit.lab.baselines import ONE_SHOT, TRAINED, Task
from simplicit.lab.baselines.gmp import cubic
from simplicit.lab.baselines.obs import prune
from simplicit.lab.baselines.spr import perspective
from simplicit.lab.baselines.sss import MOMENTUM, apg_step
from simplicit.lab.baselines.tools import inputs, search, structures, weights
from simplicit.lab.methods import BASELINES, Kind
from simplicit.sparsity.elimination.of_rows import eliminate

METHODS = {**ONE_SHOT, **TRAINED}
UNSTRUCTURED = [name for name in METHODS if BASELINES[name] is not Kind.STRUCTURED]


def blobs(m: int = 240) -> tuple[Tensor, Tensor]:
    """Three well separated classes of 6 values, the last of them always zero."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(m) % 3
    centres = torch.rand(3, 6, generator=generator)
    values = centres[labels] + 0.05 * torch.randn(m, 6, generator=generator)
    values[:, -1] = 0
    return values, labels


@cache
def dense() -> Task:
    """A trained network 6-12-8-3 with a dead input, a zero weight and dropout."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    values, labels = blobs()
    explicit.train(net, values, labels, epochs=20, lr=0.01, batch_size=16)
    with torch.no_grad():
        net[0].weight[0, 0] = 0  # pyright: ignore
    return Task(net, values[:100], values, labels, epochs=5, batch_size=16, lr=0.01)


class Grouped(nn.Module):
    """Convolutions with groups, stride, padding, normalisation and a sum; modules out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6 * 9, 3)
        self.second = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.first = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, u: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(u)))
        return self.head((x + torch.relu(self.second(x))).flatten(1))


def grouped() -> Task:
    torch.manual_seed(1)
    u = torch.randn(60, 2, 6, 6)
    return Task(Grouped(), u, u, torch.arange(60) % 3, epochs=2, batch_size=20, lr=0.01)


def parameters(net: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in net.state_dict().values()])


def linear(W: Tensor, X: Tensor) -> Task:
    """One linear layer without bias."""
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False).to(W.dtype)
    with torch.no_grad():
        layer.weight.copy_(W)
    return Task(nn.Sequential(layer), X, X, torch.zeros(len(X), dtype=torch.int64))


def weight_of(net: nn.Module) -> Tensor:
    return weights.layers(net)[0].weight.detach()


@pytest.fixture
def two_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short search of the regulariser's strength."""
    for name in ("sss", "spr"):
        monkeypatch.setattr(import_module(f"simplicit.lab.baselines.{name}"), "TRAININGS", 2)


# every method


@pytest.mark.parametrize("name", UNSTRUCTURED)
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9])
def test_the_budget_is_met_to_the_unit(name: str, sparsity: float) -> None:
    for task in (dense(), grouped()):
        pruned = METHODS[name](task, sparsity)
        assert type(pruned) is type(task.net)
        assert weights.nonzeros(pruned) == round((1 - sparsity) * weights.nonzeros(task.net))
        assert parameters(pruned).isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_the_network_and_the_random_state_stay_and_the_seed_decides(
    name: str, two_trainings: None
) -> None:
    task = replace(dense(), epochs=2)
    task.net.requires_grad_(False)
    before, state = parameters(task.net).clone(), torch.random.get_rng_state()
    modes = [module.training for module in task.net.modules()]
    first = METHODS[name](task, 0.5)
    assert torch.equal(parameters(task.net), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in task.net.modules()] == modes
    assert not any(parameter.requires_grad for parameter in task.net.parameters())
    task.net.requires_grad_(True)
    torch.rand(3)
    assert torch.equal(parameters(METHODS[name](task, 0.5)), parameters(first))


def test_another_seed_gives_another_mask() -> None:
    first, other = (baselines.random(replace(dense(), seed=seed), 0.5) for seed in (0, 1))
    assert not torch.equal(parameters(first), parameters(other))


@pytest.mark.parametrize("name", TRAINED)
def test_training_keeps_the_classes_apart(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("simplicit.lab.baselines.spr"), "ALPHAS", (0.5,))
    task = replace(dense(), epochs=10, batch_size=4) if name == "spr" else dense()
    pruned = TRAINED[name](task, 0.5)
    assert weights.nonzeros(pruned) <= round(0.5 * weights.nonzeros(task.net))
    assert explicit.accuracy(pruned, task.train_inputs, task.train_labels) > 0.9


@pytest.mark.parametrize("name", METHODS)
def test_bad_input_is_one_line(name: str) -> None:
    broken = nn.Sequential(nn.Linear(6, 3))
    with torch.no_grad():
        broken[0].weight[0, 0] = torch.nan  # pyright: ignore
    for task, sparsity, told in (
        (dense(), 1.0, "sparsity is 1.0"),
        (dense(), math.nan, "sparsity is nan"),
        (replace(dense(), net=broken), 0.5, "layer '0' holds NaN"),
        (replace(dense(), net=nn.Identity()), 0.5, "no non-zero weights"),
    ):
        with pytest.raises(InputError, match=told) as caught:
            METHODS[name](task, sparsity)
        assert "\n" not in str(caught.value)


def test_bad_tasks_are_refused() -> None:
    task = dense()
    for change, told in (
        ({"calibration": task.calibration[:0]}, "empty"),
        ({"calibration": task.calibration * torch.inf}, "NaN or infinity"),
        ({"epochs": -1}, "epochs is -1"),
    ):
        with pytest.raises(InputError, match=told):
            replace(task, **change)


# weights and what they read


def test_of_equal_scores_the_first_stay() -> None:
    masks = weights.largest([torch.ones(3), torch.tensor([1.0, 2.0])], 3)
    assert [mask.tolist() for mask in masks] == [[True, True, False], [False, True]]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 6),
        nn.Conv1d(4, 6, 3, padding=2, dilation=2, groups=2),
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular", groups=4),
    ],
)
def test_rows_times_weight_is_the_output(layer: weights.Layer) -> None:
    spatial = {nn.Linear: (), nn.Conv1d: (7,), nn.Conv2d: (7, 6)}[type(layer)]
    x = torch.randn(5, 4, *spatial)
    X, W = inputs.rows(layer, x), layer.weight.flatten(1)
    outputs = torch.einsum("gmd,god->mgo", X, W.view(len(X), -1, W.shape[1])).flatten(1)
    bias = layer.bias
    assert bias is not None
    expected = layer(x).reshape(5, len(W), -1).mT.reshape(-1, len(W))
    torch.testing.assert_close(outputs + bias, expected)


def test_layers_come_in_the_order_of_their_calls() -> None:
    net = Grouped()
    assert inputs.in_order(grouped(), net) == [net.first, net.second, net.head]


# one method each


def test_magnitude_keeps_the_largest_of_all_or_of_each_layer() -> None:
    net = dense().net
    pruned = weights.magnitudes(baselines.magnitude(dense(), 0.6))
    flat = torch.cat([w.flatten() for w in weights.magnitudes(net)])
    kept = torch.cat([w.flatten() for w in pruned]) > 0
    assert flat[kept].min() >= flat[~kept].max()
    each = baselines.magnitude(dense(), 0.6, layerwise=True)
    for before, after in zip(weights.layers(net), weights.layers(each), strict=True):
        kept, size = after.weight != 0, before.weight.abs()
        assert size[kept].min() >= size[~kept].max()
        assert abs(int(kept.sum()) - 0.4 * int(before.weight.count_nonzero())) < 1


def test_wanda_by_hand() -> None:
    X = torch.tensor([[3.0, 0.0, 1.0, 0.0], [4.0, 0.1, 0.0, 0.0]])  # norms 5, 0.1, 1, 0
    W = torch.tensor([[0.1, 9.0, 2.0, 50.0], [1.0, -2.0, -3.0, 9.0]])
    # |w| norm: 0.5, 0.9, 2, 0 and 5, 0.2, 3, 0
    expected = torch.tensor([[0.0, 9.0, 2.0, 0.0], [1.0, 0.0, -3.0, 0.0]])
    assert torch.equal(weight_of(baselines.wanda(linear(W, X), 0.5)), expected)


def test_wanda_reads_the_pruned_network() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    first, last = weights.layers(net)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 2.9]]))
        last.weight.copy_(torch.tensor([[1.6, 1.0]]))
    X = torch.ones(4, 2)
    # dense states 3 and 5.9 would keep the second; of the pruned ones, 2 and 3, the first wins
    task = Task(net, X, X, torch.zeros(4, dtype=torch.int64))
    second = weights.layers(baselines.wanda(task, 0.5))[1].weight
    assert second.detach().tolist() == [[pytest.approx(1.6), 0.0]]


def random_rows(d: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(d)
    X = torch.randn(40, d, dtype=torch.float64, generator=generator)
    X = X @ torch.randn(d, d, dtype=torch.float64, generator=generator)
    W = torch.randn(rows, d, dtype=torch.float64, generator=generator)
    return X, W, X.T @ X / len(X)


def lost(w: Tensor, w0: Tensor, H: Tensor) -> float:
    return float((w - w0) @ H @ (w - w0))


def test_obs_removes_the_weight_that_costs_least() -> None:
    X, W, H = random_rows(6, 1)

    def without(j: int) -> Tensor:
        stays = [i for i in range(6) if i != j]
        w = torch.zeros(6, dtype=torch.float64)
        w[stays] = torch.linalg.lstsq(X[:, stays], X @ W[0]).solution
        return w

    losses = [lost(without(j), W[0], H) for j in range(6)]
    order, cost = eliminate(torch.linalg.inv(H), W, torch.zeros(6, dtype=torch.bool))
    assert int(order[0, 0]) == min(range(6), key=losses.__getitem__)
    assert 2 * float(cost[0, 0]) == pytest.approx(min(losses))
    torch.testing.assert_close(prune(W, H[None], 5)[0], without(int(order[0, 0])))


def test_obs_refit_is_least_squares_and_costs_add_up() -> None:
    X, W, H = random_rows(150, 3)  # more than two blocks of removals
    X = torch.cat([X, torch.eye(150, dtype=torch.float64)])
    H = X.T @ X
    order, cost = eliminate(torch.linalg.inv(H), W, torch.zeros(150, dtype=torch.bool))
    pruned = prune(W, H[None], 60)
    assert int(pruned.count_nonzero()) == 60
    for w, w0, gone, spent in zip(pruned, W, order, cost, strict=True):
        stays = w.nonzero().squeeze(1)
        expected = torch.linalg.lstsq(X[:, stays], X @ w0).solution
        torch.testing.assert_close(w[stays], expected)
        removed = 150 - len(stays)
        assert set(gone[:removed].tolist()).isdisjoint(stays.tolist())
        assert lost(w, w0, H) == pytest.approx(2 * float(spent[:removed].sum()))


def test_obs_beats_magnitude_at_the_outputs() -> None:
    X, W, _ = random_rows(30, 4)
    task = linear(W, X)
    errors = [
        float(((X @ (weight_of(method(task, 0.6)) - W).T) ** 2).sum())
        for method in (baselines.obs, baselines.magnitude)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_cubic_schedule() -> None:
    assert cubic(0, 100, 0.9) == 0
    assert cubic(50, 100, 0.8) == pytest.approx(0.8 - 0.8 / 8)
    assert cubic(35, 100, 0.8, initial=0.2, begin=10) == pytest.approx(0.8 - 0.6 * 0.75**3)
    assert cubic(100, 100, 0.9) == cubic(500, 100, 0.9) == 0.9


def test_gradual_pruning_without_epochs_is_magnitude() -> None:
    task = replace(dense(), epochs=0)
    assert torch.equal(
        parameters(baselines.gmp(task, 0.7)), parameters(baselines.magnitude(task, 0.7))
    )


def test_sss_step_by_hand() -> None:
    scale, velocity = torch.tensor([1.0, 0.01, 0.5]), torch.tensor([0.1, -0.2, 0.0])
    gradient, eta, gamma = torch.tensor([2.0, 0.0, -1.0]), 0.1, 0.5
    expected = []
    for lam, v, g in zip(scale.tolist(), velocity.tolist(), gradient.tolist(), strict=True):
        v *= MOMENTUM
        z = lam - eta * g
        z = math.copysign(max(abs(z) - eta * gamma, 0), z)
        v = z - lam + v
        expected.append((max(0, z + MOMENTUM * v), v))
    new, moved = apg_step(scale, velocity, gradient, eta, gamma)
    torch.testing.assert_close(torch.stack([new, moved], dim=1), torch.tensor(expected))
    assert new[1] == 0


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_perspective_is_the_least_over_y(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    M, W = 2.0, torch.randn(30, 4, dtype=torch.float64, generator=generator)
    W *= torch.linspace(0.01, 1, 30, dtype=torch.float64)[:, None] / W.abs().amax() * M
    W[::3, 1:] *= 0.01  # far from even: the bound on y decides where alpha is small
    values = perspective(W, alpha, M)
    for w, value in zip(W, values.tolist(), strict=True):
        low = float(w.abs().max()) / M
        y = torch.linspace(low, 1, 20_001, dtype=torch.float64)
        grid = alpha * w.square().sum() / y + (1 - alpha) * y
        assert value == pytest.approx(float(grid.min()), rel=1e-5)
        assert value <= float(grid.min()) * (1 + 1e-12)


def test_perspective_has_the_three_cases_and_no_jumps() -> None:
    alpha, M = 0.2, 1.0

    def r(w: list[float], alpha: float = alpha) -> float:
        return float(perspective(torch.tensor([w], dtype=torch.float64), alpha, M))

    assert r([0.9] * 16) == pytest.approx(alpha * 16 * 0.81 + 1 - alpha)  # y = 1
    assert r([0.1] * 16) == pytest.approx(2 * math.sqrt(alpha * (1 - alpha)) * 0.4)
    assert r([0.4, 0.0]) == pytest.approx(alpha * M * 0.16 / 0.4 + (1 - alpha) * 0.4 / M)
    assert r([0.0, 0.0]) == 0
    border = math.sqrt((1 - alpha) / alpha) / 4  # ‖w‖ at which y becomes 1
    assert r([border - 1e-9] * 16) == pytest.approx(r([border + 1e-9] * 16), abs=1e-6)
    assert r([0.3, 0.3], 0.5 - 1e-9) == pytest.approx(r([0.3, 0.3], 0.5 + 1e-9), abs=1e-6)
    W = torch.zeros(1, 3, requires_grad=True)
    perspective(W, alpha, M).sum().backward()
    assert W.grad is not None and W.grad.isfinite().all()


# structures


def test_removing_structures_leaves_no_trace_of_them() -> None:
    task, net = grouped(), Grouped()
    torch.manual_seed(0)
    nn.init.uniform_(net.norm.bias)
    groups = structures.hidden(task, net)
    assert [(entry.layer, entry.norm) for entry in groups] == [
        (net.first, net.norm),
        (net.second, None),
    ]
    first = torch.tensor([True, False, True, True, True, False])
    second = torch.tensor([True, False, True, True, True, True])
    structures.remove(task, net, groups, [first, second])
    assert not net.first.weight[~first].any() and not net.norm.bias[~first].any()
    assert net.first.weight[first].all()
    # group 0 of the second reads channels 0 and 1, group 2 reads 4 and 5
    expected = torch.ones(6, 2)
    expected[:2, 1] = expected[4:, 1] = expected[1] = 0
    assert torch.equal((net.second.weight != 0).float().amax(dim=(2, 3)), expected)
    # the head reads the sum: only where both are gone
    read = net.head.weight.view(3, 6, 9) != 0
    assert torch.equal(read.all(dim=2), read.any(dim=2))
    assert read[0, :, 0].tolist() == [True, False, True, True, True, True]


def test_removed_columns_were_never_needed() -> None:
    task, net = grouped(), Grouped().eval()
    groups = structures.hidden(task, net)
    stays = [torch.arange(6) % 3 > 0, torch.arange(6) != 3]
    with torch.no_grad():
        x = F.relu(net.norm(net.first(task.calibration))) * stays[0].view(-1, 1, 1)
        y = F.relu(net.second(x)) * stays[1].view(-1, 1, 1)
        expected = net.head((x + y).flatten(1))
        structures.remove(task, net, groups, stays)
        torch.testing.assert_close(net(task.calibration), expected)


def residual(kind: type[nn.Module] = StagewiseResNet20) -> tuple[Task, nn.Module]:
    """A residual network with batch norm that is not the identity, and eight images."""
    torch.manual_seed(0)
    net = kind(classes=3).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    u = torch.rand(8, 3, 32, 32)
    return Task(net, u, u, torch.arange(8) % 3, epochs=1, batch_size=4), net


@pytest.mark.parametrize("kind", [ResNet20, StagewiseResNet20])
def test_residual_branches_end_where_their_last_norm_does(kind: type[nn.Module]) -> None:
    task, net = residual(kind)
    names = {module: name for name, module in net.named_modules()}
    ends = [names[entry.last] for entry in structures.hidden(task, net) if entry.branch]
    assert ends == [f"layer{i}.{j}.bn2" for i in (1, 2, 3) for j in range(3)]


@pytest.mark.parametrize("kind", [ResNet20, StagewiseResNet20])
def test_without_a_branch_the_block_is_its_shortcut(kind: type[nn.Module]) -> None:
    task, net = residual(kind)
    groups = structures.hidden(task, net)
    gone = net.get_submodule("layer2.0.bn2")
    stays = [torch.full((len(e.layer.weight),), e.last is not gone) for e in groups]
    block = net.get_submodule("layer2.0")
    with torch.no_grad():
        hook = gone.register_forward_hook(lambda *given: torch.zeros_like(given[2]))
        expected = net(task.calibration)
        hook.remove()
        before = weights.by_name(net)
        structures.remove(task, net, groups, stays)
        torch.testing.assert_close(net(task.calibration), expected)
    changed = [name for name, count in weights.by_name(net).items() if count != before[name]]
    # nobody reads the first any more; the channels that shortcut A fills with zeros hold nothing
    empty = ["layer2.1.conv1"] if kind is ResNet20 else []
    assert changed == ["layer2.0.conv1", "layer2.0.conv2", *empty]
    for conv in ("conv1", "conv2"):
        assert not block.get_submodule(conv).weight.any()  # pyright: ignore


@pytest.mark.parametrize("kind", [ResNet20, StagewiseResNet20])
def test_channels_of_a_residual_sum_go_only_with_all_that_write_them(
    kind: type[nn.Module],
) -> None:
    task, net = residual(kind)
    groups = structures.hidden(task, net)
    generator = torch.Generator().manual_seed(1)
    stays = [torch.rand(len(e.layer.weight), generator=generator) > 0.5 for e in groups]
    handles = [
        entry.last.register_forward_hook(lambda _, __, out, stay=stay: out * stay.view(-1, 1, 1))
        for entry, stay in zip(groups, stays, strict=True)
    ]
    with torch.no_grad():
        expected = net(task.calibration)
        for handle in handles:
            handle.remove()
        held = structures.remove(task, net, groups, stays)
        torch.testing.assert_close(net(task.calibration), expected)
    assert all(not parameter[~stay].any() for parameter, stay in held)


def test_structured_methods_take_residual_networks(two_trainings: None) -> None:
    task, _ = residual()
    pruned = baselines.sss(task, 0.3)
    assert parameters(pruned).isfinite().all()
    assert weights.nonzeros(pruned) < weights.nonzeros(task.net)


def test_structured_methods_take_convolutions_with_groups(two_trainings: None) -> None:
    for method in (baselines.sss, baselines.spr):
        pruned = method(grouped(), 0.3)
        assert parameters(pruned).isfinite().all()


def test_the_search_takes_the_nearest_at_or_above() -> None:
    tried: list[float] = []

    def run(strength: float) -> search.Found:
        tried.append(strength)
        return search.Found(nn.Identity(), min(1.0, math.floor(strength) / 20), strength)

    found = search.nearest(run, 0.52, start=1.0, trainings=9)
    assert found.sparsity == pytest.approx(0.55) and len(tried) <= 9
    assert search.nearest(run, 0.9, start=1.0, trainings=2).sparsity == pytest.approx(0.15)
