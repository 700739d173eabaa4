"""The problems that are written, the order they are solved in, and what is kept of them."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from simplicit.calibration.batches import batches
from simplicit.calibration.structure import Structure
from simplicit.convex.gram import Gram
from simplicit.errors import InputError
from simplicit.fit import fit
from simplicit.matching import dense as matching
from simplicit.matching.dense import Matching
from simplicit.matching.dense_elimination import EliminationMatching
from simplicit.matching.records import row_records
from simplicit.recipe import Recipe
from teachers import N0, PHIS, quick_fit, read, samples, teacher

ROW = ["layer", "row", "status", "gap", "relative_gap", "objective", "bound", "nonzeros"]
ROW += ["iterations"]


def start(
    recipe: Recipe, structure: Structure = "triangular", phi: str = "relu", **options
) -> Matching:
    arguments = {"workers": 1, "device": None, "checkpoint": None} | options
    kind = EliminationMatching if recipe.eliminates else Matching
    return kind(read(phi), batches(samples(), 64), recipe, structure, *arguments.values())


def states(phi: str = "relu") -> tuple[Tensor, Tensor]:
    """V = [X U 1] and T = [Z Y] as the network's own modules compute them."""
    net, u = teacher(phi), samples()
    values = [u]
    for module in net:
        values.append(module(values[-1]))
    (z1, x1), (z2, x2) = values[1:3], values[3:5]
    one = torch.ones(len(u), 1)
    return torch.cat([x2, x1, u, one], 1).detach(), torch.cat([z2, z1, values[-1]], 1).detach()


@pytest.mark.parametrize("batch", [1, 64, 10**6])
def test_the_gram_is_that_of_the_networks_states(batch):
    job = Matching(read(), batches(samples(), batch), Recipe(), "full", 1, None, None)
    mine, naive = job.gram(None), Gram.from_data(*states())
    assert mine.m == naive.m == 200
    for name in ("G", "R", "t2"):
        torch.testing.assert_close(getattr(mine, name), getattr(naive, name), rtol=1e-6, atol=1e-7)


def test_without_bias_there_is_no_column_of_ones():
    job = start(Recipe(bias=False))
    G = Gram.from_data(*states()).G[:-1, :-1]
    torch.testing.assert_close(job.gram(None).G, G, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("kappa", [0.3, 0.99])
def test_the_teacher_is_inside_its_ball(phi, kappa):
    job = start(Recipe(kappa=kappa, structure="full"), "full", phi)
    A, B, C, D, b, d = job.equations.dense()
    W = torch.cat([torch.cat([A, B], 1), torch.cat([C, D], 1)])
    W = torch.cat([W, torch.cat([b, d])[:, None]], 1)
    terms = job.problem(job.blocks[0], job.gram(None)).terms
    norms = terms.ball_norm(W[: len(A)])
    assert (norms <= terms.radius[:, 0] * (1 + 1e-12)).all()
    assert not terms.omega[len(A) :].any()
    outputs = job.problem(job.blocks[1], job.gram(None))
    assert not outputs.terms.has_ball


def test_closed_loop_matches_on_the_models_own_states():
    job = start(Recipe())
    gram = job.gram(None)
    job.plan(gram)
    for index, block in enumerate(job.blocks):
        looped, naive = job.gram(index), states()
        x = naive[0].double()
        for done in job.blocks[:index]:
            x[:, done.rows] = (x @ job.W[done.rows].T).relu()
        expected = Gram.from_data(x, naive[1])
        torch.testing.assert_close(looped.G, expected.G, rtol=1e-6, atol=1e-7)
        # targets stay the teacher's
        torch.testing.assert_close(looped.t2, gram.t2)
        job.solve_block(index, gram)
        assert job.W[block.rows].any()


def test_a_full_model_closes_the_loop_on_its_equilibrium():
    job = start(Recipe(structure="full", kappa=0.5), "full")
    gram = job.gram(None)
    job.plan(gram)
    job.solve_block(0, gram)
    x = job.model(torch.float64).equilibrium(samples().double()).states.detach()
    looped = job.gram(1)
    torch.testing.assert_close(looped.G[:9, :9], x.T @ x / 200, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("structure", ["triangular", "full"])
@pytest.mark.parametrize("sparsity", [None, 0.5])
def test_every_row_leaves_a_record(structure, sparsity):
    result = quick_fit(Recipe(structure=structure, sparsity=sparsity, objective="sparsity"))
    blocks = {"triangular": {"0": 5, "2": 4, "output": 3}, "full": {"states": 9, "output": 3}}
    assert Counter(row["layer"] for row in result.rows) == blocks[structure]
    for row in result.rows:
        assert list(row) == ROW
        assert row["status"] == "solved" and row["relative_gap"] <= 1e-4
        assert row["bound"] <= row["objective"] * (1 + 1e-9)
        if sparsity is None:
            assert row["objective"] - row["bound"] == pytest.approx(row["gap"], abs=1e-12)
    assert sum(row["nonzeros"] for row in result.rows) == result.model.nonzeros


def test_the_trace_runs_forward_and_ends_below_the_tolerance():
    result = quick_fit(Recipe(sparsity=0.5, support="relaxation"))
    seconds = [event["seconds"] for event in result.trace]
    assert seconds == sorted(seconds) and 0 < seconds[-1] <= sum(result.seconds.values())
    assert list(dict.fromkeys(event["layer"] for event in result.trace)) == ["0", "2", "output"]
    last = {event["layer"]: event for event in result.trace}
    assert all(event["gap_max"] <= 1e-4 for event in last.values())
    assert all(event["gap_median"] <= event["gap_max"] for event in result.trace)


@pytest.mark.parametrize("closed_loop", [True, False])
def test_aware_targets_lose_nothing_where_states_are_on(closed_loop):
    losses = []
    for aware in (False, True):
        recipe = Recipe(sparsity=0.6, sweeps=0, relu_aware=aware, closed_loop=closed_loop)
        job = start(recipe)
        gram = job.gram(None)
        job.plan(gram)
        job.solve_block(0, gram)
        assert isinstance(job, EliminationMatching)
        assert int(torch.count_nonzero(job.W[4:9, :-1])) == sum(job.keep[0])
        V, T = states()
        z, found = T[:, 4:9].double(), V.double() @ job.W[4:9].T
        losses.append(torch.where(z > 0, z - found, found.clamp_min(0)).square().mean(0))
    assert (losses[1] <= losses[0] * (1 + 1e-9)).all() and (losses[1] < 0.99 * losses[0]).any()


@pytest.mark.parametrize("options", [{"sensitivity": False}, {"sweeps": 0}, {"sweeps": 4}])
@pytest.mark.parametrize("phi", ["relu", "tanh"])
def test_every_choice_meets_the_budget(options, phi):
    result = quick_fit(Recipe(sparsity=0.5, **options), phi)
    assert result.model.nonzeros == sum(row["nonzeros"] for row in result.rows) == N0 // 2
    assert ("sweeps" in result.seconds) == (options.get("sweeps") != 0 or "sweeps" not in options)


def test_the_seeds_pruning_zeroes_that_percentage_of_every_block():
    full = quick_fit(Recipe()).model
    pruned = quick_fit(Recipe(sparsity_ratio=30.0, closed_loop=False)).model
    # rows see earlier states and the inputs: 5 × 6, 4 × 11, 3 × 15
    assert full.nonzeros == 30 + 44 + 45
    assert pruned.nonzeros == 30 - 9 + 44 - 13 + 45 - 13


@pytest.mark.parametrize("sparsity", [None, 0.5])
def test_a_matching_that_is_stopped_goes_on_where_it_was(tmp_path, monkeypatch, sparsity):
    recipe = Recipe(sparsity=sparsity)
    whole = quick_fit(recipe)
    solve_block, solved = Matching.solve_block, []

    def stop_in_the_last(self: Matching, index: int, gram: Gram) -> None:
        if index == 2:
            raise KeyboardInterrupt
        solve_block(self, index, gram)

    def watch(layer: str, *rest):
        solved.append(layer)
        return row_records(layer, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Matching, "solve_block", stop_in_the_last)
        quick_fit(recipe, checkpoint=tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".safetensors"]
    monkeypatch.setattr(matching, "row_records", watch)
    again = quick_fit(recipe, checkpoint=tmp_path)
    assert solved == ["output"]
    for name in "ABCDbd":
        assert torch.equal(getattr(again.model, name), getattr(whole.model, name))
    assert again.rows == whole.rows
    seconds = [event["seconds"] for event in again.trace]
    assert seconds == sorted(seconds) and len(seconds) == len(whole.trace)


def test_time_before_a_stop_counts(tmp_path):
    first = quick_fit(Recipe(sparsity=0.5), checkpoint=tmp_path)
    again = quick_fit(Recipe(sparsity=0.5), checkpoint=tmp_path)
    for phase in ("level", "solve"):
        assert again.seconds[phase] >= 0.9 * first.seconds[phase] - 0.02


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    quick_fit(Recipe(), checkpoint=tmp_path)
    quick_fit(Recipe(), checkpoint=tmp_path, workers=2, batch_size=7)
    for other in (
        lambda: quick_fit(Recipe(alpha=0.5), checkpoint=tmp_path),
        lambda: quick_fit(Recipe(structure="layered"), checkpoint=tmp_path),
        lambda: quick_fit(Recipe(), "tanh", checkpoint=tmp_path),
        lambda: quick_fit(Recipe(), inputs=samples(seed=2), checkpoint=tmp_path),
        lambda: quick_fit(Recipe(), inputs=samples(199), checkpoint=tmp_path),
    ):
        with pytest.raises(InputError, match="belongs to another network, recipe or calibration"):
            other()


def test_states_that_overflow_are_named():
    with pytest.raises(InputError, match="the network's states are not finite on the calibration"):
        quick_fit(Recipe(), inputs=samples() * 3e38)
    with pytest.raises(InputError, match="are of size 9e[+]19 on the calibration inputs"):
        quick_fit(Recipe(), inputs=samples() * 1e20)


def test_a_layer_that_is_always_off_is_matched_by_nothing():
    net = teacher()
    layer = net[2]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.bias.fill_(-100.0)
    result = fit(net, samples(), Recipe(sparsity=0.5))
    assert {row["status"] for row in result.rows} == {"solved"}
    y = result.model(samples())
    torch.testing.assert_close(y, net(samples()), rtol=1e-3, atol=1e-3)
    assert result.model.nonzeros <= N0 // 2 and math.isfinite(result.model.certificate.norm)
