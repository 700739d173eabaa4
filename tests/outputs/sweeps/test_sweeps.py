"""Sweeps on the outputs, for networks of every kind: states, budgets, descent, dtypes, bits."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from example_networks import Net, example, seeded
from moved_networks import KINDS, MANY, RESNET, inputs, job, job_of, moved, network
from shapes import unchecked
from simplicit.calibration.rows import rows_of
from simplicit.capture.read import capture
from simplicit.equations.equation import Equation
from simplicit.equations.network import StateEquations
from simplicit.outputs.downstream import Downstream
from simplicit.outputs.expansion import Expansion
from simplicit.outputs.path_norm import path_norm
from simplicit.outputs.sweeps.sweeps import Sweeps
from teachers import PHIS


def weights(sweeps: Sweeps) -> list[Tensor]:
    return [layer.rows.weights(sweeps.every[layer.rows.index]) for layer in sweeps.layers]


def check_states(sweeps: Sweeps, u: Tensor) -> None:
    """What is kept of states and outputs is what the equations give."""
    Z, Y = sweeps.equations.replay(u)
    rtol, atol = (1e-4, 1e-4) if u.dtype == torch.float32 else (1e-7, 1e-7)
    torch.testing.assert_close(sweeps.samples.outputs, Y, rtol=rtol, atol=atol)
    for k, z in enumerate(Z):
        kept = torch.cat([part.Z[k] for part in sweeps.samples.parts])
        torch.testing.assert_close(kept, z, rtol=rtol, atol=atol)
        kept = torch.cat([part.X[k] for part in sweeps.samples.parts])
        torch.testing.assert_close(kept, sweeps.every[k].phi(z), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", [*PHIS, *KINDS])
def test_the_teacher_is_at_distance_zero_and_stays_there(name):
    sweeps, _ = job(name)
    single = sweeps.equations.like.dtype == torch.float32
    before = weights(sweeps)
    for _ in range(2):
        assert sweeps.samples.distance < (1e-7 if single else 1e-14)
        sweeps.sweep()
    for old, new in zip(before, weights(sweeps), strict=True):
        torch.testing.assert_close(new, old, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("name", [*PHIS, *KINDS])
def test_sweeps_on_a_support_only_come_nearer_and_states_stay_true(name):
    sweeps, u = job(name, shift=0.3)
    distances = [sweeps.samples.distance]
    supports = [W != 0 for W in weights(sweeps)]
    for _ in range(4):
        sweeps.sweep()
        distances.append(sweeps.samples.distance)
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.3 * distances[0]
    for support, W in zip(supports, weights(sweeps), strict=True):
        assert not W[~support].any()
    check_states(sweeps, u)


@pytest.mark.parametrize(
    ("name", "budgets"),
    [
        ("relu", [40, 20, 0]),
        *((kind, [None]) for kind in KINDS),
        (RESNET, [None]),
    ],
)
def test_a_budget_is_reached_to_the_unit(name, budgets):
    sweeps, u = job(name, shift=0.1, m=8)
    start = sweeps.nonzeros()
    sweeps.sweep(start)
    assert sweeps.nonzeros() == start
    wanted = start
    for budget in budgets:
        budget = start // 3 if budget is None else budget
        while wanted > budget:
            wanted = max(budget, wanted // 2)
            sweeps.sweep(wanted)
            assert sweeps.nonzeros() == wanted
    check_states(sweeps, u)


@pytest.mark.parametrize("name", ["tanh", "functional", "encoder layer"])
def test_matching_ends_at_the_budget_and_nearer_than_it_went(name):
    sweeps, u = job(name, m=60)
    budget, stages, steps = sweeps.nonzeros() // 2, [], []

    def after(stage: str) -> None:
        stages.append((stage, sweeps.nonzeros(), sweeps.samples.distance))

    sweeps.match(budget, 6, steps.append, after)
    assert [stage for stage, *_ in stages] == [f"sweep {k}" for k in range(1, 7)]
    counts, distances = [count for _, count, _ in stages], [d for *_, d in stages]
    assert counts[-1] == budget and counts[:4] == sorted(counts[:4], reverse=True)
    assert distances[-1] <= distances[-2]
    assert sum(steps) == 6 * sweeps.count
    torch.testing.assert_close(
        sweeps.samples.outputs, sweeps.equations.replay(u)[1], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["relu", "functional", "tokens", MANY])
def test_threads_do_not_change_bits(name, monkeypatch):
    monkeypatch.setattr("simplicit.outputs.sweeps.samples.THREADED", 0)
    one, two = (job(name, shift=0.3, m=30, workers=workers)[0] for workers in (1, 2))
    for sweeps in (one, two):
        sweeps.match(sweeps.nonzeros() // 2, sweeps=5)
    for W, V in zip(weights(one), weights(two), strict=True):
        assert torch.equal(W, V)


@pytest.mark.parametrize("name", ["relu", "functional", "tokens"])
def test_room_for_fewer_inverses_does_not_change_bits(name, monkeypatch):
    found = []
    for room in (2**25, 200, 1):
        monkeypatch.setattr("simplicit.outputs.sweeps.channels.ROOM", room)
        sweeps, _ = job(name, shift=0.3, m=30)
        sweeps.match(sweeps.nonzeros() // 2, sweeps=5)
        found.append(weights(sweeps))
    for other in found[1:]:
        for W, V in zip(found[0], other, strict=True):
            assert torch.equal(W, V)


@pytest.mark.parametrize("name", ["relu", "functional"])
def test_first_sweeps_look_at_fewer_samples_and_all_decide_in_the_end(name, monkeypatch):
    monkeypatch.setattr("simplicit.outputs.sweeps.sweeps.FEWER", 20)
    monkeypatch.setattr("simplicit.outputs.sweeps.sweeps.PER_FEATURE", 0)
    sweeps, u = job(name, shift=0.3)
    budget, before, seen = sweeps.nonzeros() // 2, sweeps.samples.distance, []
    kept = {}

    def after(stage: str) -> None:
        seen.append(sweeps.samples.m)
        kept[stage] = deepcopy(sweeps.write()), sweeps.every[:]

    sweeps.match(budget, 7, after=after)
    assert seen == [20, 20, 60, 60, 60, 60, 60]
    assert sweeps.nonzeros() == budget and sweeps.samples.distance < before
    torch.testing.assert_close(sweeps.samples.outputs, sweeps.equations.replay(u)[1])
    for stage in ("sweep 1", "sweep 2", "sweep 5", "sweep 6"):  # stopped there, and taken up
        again, _ = job(name, shift=0.3)
        again.read(*kept[stage])
        again.match(budget, 7)
        for W, V in zip(weights(again), weights(sweeps), strict=True):
            assert torch.equal(W, V)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["relu", "residual", "functional", "group norm", MANY])
def test_a_network_keeps_its_dtype(name, dtype):
    teacher = network(name).changed(lambda t: t.to(dtype) if t.is_floating_point() else t)
    sweeps, u = job_of(teacher, shift=0.3, m=20)
    sweeps.match(sweeps.nonzeros() // 2, sweeps=4)
    for e in sweeps.equations.layers:
        assert {term.weight.dtype for term in e.terms} <= {dtype}
        assert e.bias is None or e.bias.dtype == dtype
    assert sweeps.samples.outputs.dtype == dtype == u.dtype


@pytest.mark.parametrize("name", ["relu", "residual", "tokens"])
def test_without_bias_no_bias_is_moved(name):
    sweeps, _ = job(name, shift=0.3, m=20, bias=False)
    before = [e.full_bias for e in sweeps.every]
    sweeps.match(sweeps.nonzeros() // 2, sweeps=4)
    for old, e in zip(before, sweeps.every, strict=True):
        new = e.full_bias
        assert old is new or old is not None and new is not None and torch.equal(old, new)


@pytest.mark.parametrize("name", ["relu", "functional", MANY])
def test_one_sample_is_no_obstacle(name):
    sweeps, _ = job(name, shift=0.3, m=1)
    before = sweeps.samples.distance
    sweeps.match(sweeps.nonzeros() // 2, sweeps=4)
    assert before > 0 and sweeps.samples.distance < 1.0


@unchecked()
def settled(name: str) -> tuple[Sweeps, Tensor]:
    """On fewer weights than the teacher has, after as many sweeps as it takes."""
    sweeps, u = job(name, shift=0.3)
    sweeps.match(sweeps.nonzeros() // 2, sweeps=5)
    for _ in range(150):
        before = sweeps.samples.distance
        sweeps.sweep()
        if sweeps.samples.distance > (1 - 1e-5) * before:
            break
    return sweeps, u


@pytest.mark.parametrize("name", ["residual", "functional", "tokens"])
def test_where_all_rows_stand_still_a_sweep_does_nothing_and_costs_nothing(name, monkeypatch):
    sweeps, _ = settled(name)
    for _ in range(3):  # rows that had an old Gram are tried with a new one
        sweeps.sweep()
    before, steps = weights(sweeps), []

    def refuse(*_: object) -> None:
        raise AssertionError("a row that stands still is looked at")

    for part in ("expand", "features", "move"):
        monkeypatch.setattr(Downstream, part, refuse)
    sweeps.sweep(step=steps.append)
    for old, new in zip(before, weights(sweeps), strict=True):
        assert torch.equal(old, new)
    assert sum(steps) == sweeps.count
    with pytest.raises(AssertionError, match="looked at"):  # but weights can still go
        sweeps.sweep(sweeps.nonzeros() // 2)


@pytest.mark.parametrize("name", ["tanh", "residual", "tokens"])
@unchecked()
def test_kept_grams_lead_where_new_ones_do(name, monkeypatch):
    """Gradients are new in every sweep, so an old Gram changes the way and not the end."""
    first, u = job(name, shift=0.3)
    first.match(first.nonzeros() // 2, sweeps=4)
    T = network(name).replay(u)[1].detach()
    counted: list[int] = []
    gram = Expansion.gram

    def count(*arguments: Any) -> Tensor:
        counted.append(1)
        return gram(*arguments)

    monkeypatch.setattr(Expansion, "gram", count)
    start, ends, grams = first.equations, [], []
    for change in (0.25, -1.0):
        monkeypatch.setattr("simplicit.outputs.sweeps.grams.MOVED", change)
        sweeps = Sweeps(start, rows_of(start), u, T)
        counted.clear()
        for _ in range(25):
            sweeps.sweep()
        ends.append(sweeps.samples.distance)
        grams.append(len(counted))
    assert ends[0] < 1.03 * ends[1] and ends[1] < 0.9 * first.samples.distance
    assert grams[0] < grams[1]


@pytest.mark.parametrize("name", ["relu", "functional"])
def test_a_row_loses_at_most_the_part_that_it_may(name):
    sweeps, _ = job(name, shift=0.1)
    sweeps.sweep(sweeps.nonzeros(), losing=0.25)
    before = [W.count_nonzero(2) for W in weights(sweeps)]
    budget = round(0.8 * sweeps.nonzeros())
    sweeps.sweep(budget)
    assert sweeps.nonzeros() == budget
    for old, W in zip(before, weights(sweeps), strict=True):
        assert (W.count_nonzero(2) >= (0.75 * old).long()).all()


def with_weights_of(equation: Equation, W: Tensor) -> Equation:
    (term,) = equation.terms
    return replace(equation, terms=(replace(term, map=replace(term.map, weight=W)),))


def shared_uses(equations: StateEquations) -> dict[str, list[Tensor]]:
    uses: dict[str, list[Tensor]] = {}
    for e in equations.layers:
        for term in e.terms:
            uses.setdefault(term.parameter, []).append(term.stored(term.weight))
    return {name: own for name, own in uses.items() if len(own) > 1 and name}


@pytest.mark.parametrize("name", ["recurrent", "shared", "tied"])
def test_weights_that_equations_share_are_left_alone(name):
    """Also where they have an empty row: a state of theirs is constant then."""
    teacher = network(name)
    model = moved(teacher, 0.3)
    first = next(iter(shared_uses(model).values()))[0]
    layers, spoilt = [], {}
    for e in model.layers:
        terms = []
        for term in e.terms:
            W = term.weight
            if W.shape == first.shape and torch.equal(W, first):
                W = spoilt.setdefault("W", torch.cat([0 * W[:1], W[1:]]))
            terms.append(replace(term, map=replace(term.map, weight=W)))
        layers.append(replace(e, terms=tuple(terms)))
    model = replace(model, hidden=tuple(layers[:-1]), output=layers[-1])
    before = shared_uses(model)
    u = inputs(model, 30)
    sweeps = Sweeps(model, rows_of(model), u, teacher.replay(u)[1].detach())
    tied = sum(int(uses[0].count_nonzero()) for uses in before.values())
    start, distance = sweeps.nonzeros(), sweeps.samples.distance
    sweeps.match(tied + (start - tied) // 2, sweeps=4)
    after = shared_uses(sweeps.equations)
    assert before.keys() == after.keys() and before
    for parameter, uses in after.items():
        for old, new in zip(before[parameter], uses, strict=True):
            assert torch.equal(old, new)
    assert sweeps.nonzeros() == tied + (start - tied) // 2
    assert sweeps.samples.distance < distance


def emptied(equations: StateEquations, layer: int, state: int) -> StateEquations:
    e = equations.hidden[layer]
    (term,) = e.terms
    W = term.weight.clone()
    W[state] = 0.0
    hidden = list(equations.hidden)
    hidden[layer] = with_weights_of(e, W)
    return replace(equations, hidden=tuple(hidden))


def test_constant_states_are_folded_and_no_budget_is_spent_on_them():
    teacher = network("sigmoid")
    model = emptied(moved(teacher, 0.3), 0, 2)
    u = inputs(model, 60)
    sweeps = Sweeps(model, rows_of(model), u, teacher.replay(u)[1])
    free = 6 + 4  # weights of the constant state's row, and of those that read it
    whole = sum(e.terms[0].weight.numel() for e in model.layers)
    sweeps.match(whole, sweeps=4)
    assert sweeps.nonzeros() == whole - free
    assert not sweeps.every[0].terms[0].weight[2].any()
    assert not sweeps.every[1].terms[0].weight[:, 2].any()
    check_outputs(sweeps, u)


def check_outputs(sweeps: Sweeps, u: Tensor) -> None:
    torch.testing.assert_close(
        sweeps.samples.outputs, sweeps.equations.replay(u)[1], rtol=1e-4, atol=1e-4
    )


def test_what_nothing_reads_gives_its_weights_away():
    """Weights of an unread state go to the others, which come nearer with them."""
    teacher = network("tanh")
    model = moved(teacher, 0.3)
    hidden = list(model.hidden)
    W = hidden[1].terms[0].weight.clone()
    W[:, 2] = 0.0  # the third state of the first layer
    W[:, :2] *= torch.tensor([1.0, 0.0])
    hidden[1] = with_weights_of(hidden[1], W)
    first = hidden[0].terms[0].weight.clone()
    first[[0, 3, 4], :3] = 0.0  # room for what the unread states have
    hidden[0] = with_weights_of(hidden[0], first)
    last = model.output.terms[0].weight.clone()
    last[:2, 0] = last[0, 1:3] = 0.0
    model = replace(model, hidden=tuple(hidden), output=with_weights_of(model.output, last))
    u = inputs(model, 60)
    sweeps = Sweeps(model, rows_of(model), u, teacher.replay(u)[1])
    start = sweeps.nonzeros()
    sweeps.match(start, sweeps=4)
    assert sweeps.nonzeros() == start
    unread = ~sweeps.every[1].terms[0].weight.any(0)
    assert not sweeps.every[0].terms[0].weight[unread].any()
    check_outputs(sweeps, u)


def test_a_constant_that_is_read_with_others_keeps_its_weights():
    """Through a fixed map, or at some positions only: it is not folded, and nothing changes."""
    net = Net(
        lambda s, x: s.layers[1](torch.cat([x, s.layers[0](x).relu(), x / 2], 1)),
        *(nn.Linear(6, 5), nn.Linear(17, 3)),
    ).double()
    model = emptied(capture(net, example()), 0, 1)
    u = inputs(model, 30)
    T = model.replay(u)[1].detach()
    sweeps = Sweeps(model, rows_of(model), u, T)
    sweeps.match(sweeps.nonzeros(), sweeps=4)
    assert sweeps.samples.distance < 1e-12
    torch.testing.assert_close(sweeps.equations.replay(u)[1], T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["relu", "residual", "functional"])
def test_slopes_are_means_and_the_path_norm_is_that_of_the_equations(name):
    sweeps, u = job(name, shift=0.3, m=30)
    Z, _ = sweeps.equations.replay(u)
    slopes = sweeps.slopes()
    for e, z, slope in zip(sweeps.every, Z, slopes, strict=False):
        if e.phi.name == "max_pool":
            assert slope is None
        else:
            z = z.detach().requires_grad_()
            (own,) = torch.autograd.grad(e.phi(z).sum(), z)
            assert slope is not None
            torch.testing.assert_close(slope, own.mean(0), rtol=1e-5, atol=1e-5)
    assert sweeps.path_norm() == pytest.approx(path_norm(sweeps.equations, slopes))


@pytest.mark.parametrize("name", ["relu", "residual", "concatenation", "functional"])
def test_with_a_price_the_path_norm_falls(name):
    found = []
    for price in (0.0, 1e-3, 1e-1):
        sweeps, u = job(name, m=30)
        sweeps.price = price / sweeps.path_norm()
        for _ in range(3):
            sweeps.sweep()
        found.append(sweeps.path_norm())
        check_states(sweeps, u)
    assert found[2] < found[1] < found[0]


def test_a_network_of_one_place_is_swept_as_its_matrices_are():
    """Convolutions whose samples have one position are matrices."""
    conv = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(6, 5, 1), nn.Tanh(), nn.Conv2d(5, 4, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(4, 3)),
        )
    )
    dense = nn.Sequential(
        *(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    ).double()
    state = conv.state_dict()
    for key, name in (("0", "0"), ("2", "2"), ("5", "4")):
        dense.load_state_dict(
            {
                f"{name}.weight": state[f"{key}.weight"].flatten(1),
                f"{name}.bias": state[f"{key}.bias"],
            },
            strict=False,
        )
    found = []
    for net, shape in ((conv, (6, 1, 1)), (dense, (6,))):
        sweeps, _ = job_of(capture(net, example().view(-1, *shape)), 0.3)
        sweeps.sweep()
        sweeps.sweep(sweeps.nonzeros())
        sweeps.sweep(sweeps.nonzeros() // 2)
        found.append((weights(sweeps), sweeps.samples.outputs))
    for W, V in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(W, V)
    torch.testing.assert_close(found[0][1], found[1][1])
