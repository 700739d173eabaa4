"""The loop over layers, for every kind of network in every structure it can have."""

import math
from collections import Counter
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from conv_networks import CONVOLUTIONAL, ResNet20, images, structured
from conv_networks import network as convolutional
from example_networks import CAPTURED, example, seeded
from kinds import CASES, NETWORKS, STRUCTURES, fitted, inputs, network, quick_fit, read
from simplicit import fit as fits
from simplicit.calibration.batches import batches
from simplicit.calibration.frontier import Frontier
from simplicit.calibration.moments import Readings
from simplicit.calibration.rows import rows_of
from simplicit.calibration.structure import structured as in_structure
from simplicit.capture.read import capture
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.errors import InputError
from simplicit.fit import fit
from simplicit.matching.plan import teacher_moments
from simplicit.recipe import Recipe
from simplicit.sparsity.near import RIDGE, refit_near

ROW = ["layer", "row", "status", "gap", "relative_gap", "objective", "bound", "nonzeros"]
ROW += ["iterations"]
LAYERED = [(kind, structure) for kind, structure in CASES if structure != "full"]
PLAIN = {"sweeps": 0, "sensitivity": False, "relu_aware": False}
"""Every row for itself, on targets that stay."""


SMALL = sorted(name for name in CONVOLUTIONAL if "resnet" not in name)


def read_fit(name: str, u: Tensor, recipe: Recipe, **options):
    """`fit` of a network of `conv_networks`, which is not read again."""
    with patch.object(fits, "capture", lambda *_: structured(name)):
        return fits.fit(convolutional(name), u, recipe, **options)


def predictions(model, u: Tensor) -> Tensor:
    with torch.no_grad():
        return model(u)


def distance(net, model, u: Tensor) -> float:
    return float((predictions(net, u) - predictions(model, u)).square().mean())


def states(equations, u: Tensor) -> list[Tensor]:
    """All states in forward order, then the input."""
    with torch.no_grad():
        Z, _ = equations.replay(u)
        return [*(e.phi(z) for e, z in zip(equations.hidden, Z, strict=True)), u.flatten(1)]


@pytest.mark.parametrize(("kind", "structure"), LAYERED)
@pytest.mark.parametrize(("batch", "bias"), [(4, True), (10**6, False)])
def test_the_gram_of_every_layer_is_that_of_the_networks_states(kind, structure, batch, bias):
    u = inputs(kind)[:15]
    equations = in_structure(read(kind), structure)
    layers = rows_of(equations, bias=bias)
    frontier = Frontier(equations, batches(u, batch), own=False)
    found = teacher_moments(
        equations, layers, frontier, Recipe(bias=bias), [0.0] * len(layers), None
    )
    Z, Y = equations.replay(u)
    sources = states(equations, u)
    for rows, grams in zip(layers, found, strict=True):
        equation = equations.layers[rows.index]
        z = [*Z, Y][rows.index]
        rest = equation if bias else equation.unbiased
        others = rest.preactivation(sources, without=rows.terms)
        V = rows.features(equation, sources)
        V = torch.cat([V, torch.ones_like(V[..., :1])], 2) if bias else V
        for gram, v, t in zip(grams, V, rows.targets(equation, z - others), strict=True):
            naive = Gram.from_data(v.detach(), t.detach())
            assert gram.m == naive.m
            for name in ("G", "R", "t2"):
                torch.testing.assert_close(
                    getattr(gram, name), getattr(naive, name), rtol=1e-9, atol=1e-12
                )


@pytest.mark.parametrize("closed_loop", [True, False])
@pytest.mark.parametrize(("kind", "structure"), LAYERED)
def test_a_layer_is_least_squares_on_the_states_that_it_will_read(kind, structure, closed_loop):
    """Those of the model in a closed loop, those of the network in an open one."""
    recipe = Recipe(sparsity=0.5, structure=structure, closed_loop=closed_loop, **PLAIN)
    u, equations = inputs(kind), in_structure(read(kind), structure)
    model = quick_fit(kind, recipe).model.equations
    Z, Y = equations.replay(u)
    sources = states(model if closed_loop else equations, u)
    for rows in rows_of(equations):
        ours, teacher = model.layers[rows.index], [*Z, Y][rows.index]
        missing = rows.targets(ours, teacher - ours.preactivation(sources)).detach()
        V, W = rows.features(ours, sources), rows.weights(ours)
        slope = missing.mT @ V / V.shape[1]
        # all that is left is the ridge's pull towards the network's own weights
        sizes = [size for _, size in rows.sources(equations)]
        squares = [part.mean() for part in V.square().mean((0, 1)).split(sizes)]
        scale = torch.cat([s.expand(size) for s, size in zip(squares, sizes, strict=True)])
        pull = RIDGE * scale * (W - rows.weights(equations.layers[rows.index]))
        wrong = ((slope - pull) * (W != 0)).abs()
        size = rows.targets(ours, teacher).square().mean(1).sqrt()
        assert (wrong <= 1e-7 * size[..., None] * V.square().mean(1).sqrt()[:, None]).all()
        assert missing.mean(1).abs().max() <= 1e-3 * teacher.abs().mean()  # the bias is free


def test_a_full_model_closes_the_loop_on_its_equilibrium():
    u = inputs("matrices")
    recipe = Recipe(structure="full", kappa=0.5, sparsity=0.5, **PLAIN)
    model = quick_fit("matrices", recipe).model
    V = torch.cat([model.equilibrium(u).states, u], 1).detach()
    W = torch.cat([model.C.to_dense(), model.D.to_dense()], 1).detach()
    missing = (network("matrices")(u) - model(u)).detach()
    assert missing.norm() > 1e-3
    slope = missing.T @ V * (W != 0)
    assert slope.abs().max() < 1e-5 * missing.norm() * V.norm()


def test_other_summands_errors_are_in_the_target():
    class Block(nn.Module):
        """Its shortcut and its convolution read the same; either can do the other's work."""

        def __init__(self):
            super().__init__()
            self.first, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.last = nn.Linear(4, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(torch.relu(self.inner(x) + x).mean((2, 3)))

    net, u = seeded(Block).eval(), images(60)
    equations = capture(net, u)
    frontier = Frontier(equations, batches(u, 20), own=True)
    (first, *others), done = rows_of(equations), []
    # the first layer is given away: its outputs are a mixture of what they were
    equation = equations.layers[first.index]
    W, bias = first.weights(equation), equation.channel_bias
    M = torch.eye(4, dtype=W.dtype) + 0.3 * torch.ones(4, 4, dtype=W.dtype)
    assert bias is not None
    done.append(first.put(equation, M @ W, (M @ bias - bias)[None]))
    for rows, equation in zip(others, equations.layers[1:], strict=True):
        frontier.advance(done[-1])
        (gram,) = Readings(rows, equation, frontier, bias=True).moments()
        every = torch.ones_like(gram.R, dtype=torch.bool)
        found = refit_near(RowProblem(gram, Penalty()), every, torch.zeros_like(gram.R))
        done.append(rows.put(equation, found[None, :, :-1], found[None, :, -1]))
    moved = [
        e.terms[0].weight - o.terms[0].weight for e, o in zip(equations.layers, done, strict=True)
    ]
    assert all(bool(m.any()) for m in moved)
    Y = predictions(net, u)
    x = u.flatten(1)
    known = []
    for equation in done:
        z = equation.preactivation([*known, x])
        known.append(equation.phi(z))
    torch.testing.assert_close(z, Y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "structure"), CASES)
@pytest.mark.parametrize("options", [{}, {"sparsity": 0.5}], ids=str)
def test_every_row_leaves_a_record(kind, structure, options):
    result = fitted(kind, Recipe(structure=structure, **options))
    equations = in_structure(read(kind), structure)
    wanted = Counter()
    for rows in rows_of(equations):
        groups, K, _ = rows.weights(equations.layers[rows.index]).shape
        wanted[rows.name] += groups * K
    assert Counter(row["layer"] for row in result.rows) == wanted
    assert all(
        [row["row"] for row in result.rows if row["layer"] == layer] == list(range(count))
        for layer, count in wanted.items()
    )
    for row in result.rows:
        assert list(row) == ROW
        assert row["status"] == "solved" and row["relative_gap"] <= 1e-4
        assert row["bound"] <= row["objective"] * (1 + 1e-9) + 1e-12
        if not options:
            assert row["objective"] - row["bound"] == pytest.approx(row["gap"], abs=1e-12)
    kept = sum(read(kind).kept_weights.values())
    assert sum(row["nonzeros"] for row in result.rows) == result.model.nonzeros - kept


@pytest.mark.parametrize(("kind", "structure"), CASES)
def test_the_trace_runs_forward_and_ends_below_the_tolerance(kind, structure):
    recipe = Recipe(sparsity=0.5, support="relaxation", structure=structure)
    result = fitted(kind, recipe)
    seconds = [event["seconds"] for event in result.trace]
    assert seconds == sorted(seconds) and 0 < seconds[-1] <= sum(result.seconds.values())
    names = [rows.name for rows in rows_of(in_structure(read(kind), structure))]
    assert list(dict.fromkeys(event["layer"] for event in result.trace)) == names
    last = {event["layer"]: event for event in result.trace}
    assert all(event["gap_max"] <= 1e-4 for event in last.values())
    assert all(event["gap_median"] <= event["gap_max"] for event in result.trace)


CHOICES = [
    *({"sensitivity": False}, {"closed_loop": False}, {"bias": False}),
    *({"support": "relaxation"}, {"sweeps": 4}, {"sweeps": 0}, {}),
]

MET = [
    (kind, structure, options)
    for kind, structure in CASES
    for options in CHOICES
    if (structure == "triangular" or options.get("sweeps") != 0)
    and (structure != "full" or "sweeps" not in options)
    and (kind != "matrices" or structure != "layered" or False not in options.values())
]
"""All of them for triangular models; elsewhere no sweeps are what is automatic."""


@pytest.mark.parametrize(("kind", "structure", "options"), MET, ids=str)
def test_every_choice_meets_the_budget(kind, structure, options):
    result = fitted(kind, Recipe(sparsity=0.5, structure=structure, **options))
    N0 = read(kind).nonzeros
    kept = sum(read(kind).kept_weights.values())
    stages: dict[str, int] = Counter()
    for row in result.budgets:
        stages[row["stage"]] += row["weights"]
    assert stages["network"] == N0 - kept
    # what is given out is what is matched, layer by layer
    given, matched = (
        [(row["layer"], row["weights"]) for row in result.budgets if row["stage"] == stage]
        for stage in ("plan", "match")
    )
    assert given == matched
    budget = round(0.5 * N0) - kept
    sweeps = [stage for stage in stages if stage.startswith("sweep ")]
    auto = 9 if kind == "matrices" and structure != "full" else 0
    relaxed = options.get("support") == "relaxation"
    assert len(sweeps) == (0 if relaxed else options.get("sweeps", auto))
    if sweeps:
        assert stages["plan"] >= budget and stages[sweeps[-1]] == budget
        assert max(stages[stage] for stage in sweeps) <= stages["plan"]
    else:
        assert stages["plan"] == budget
    last = stages[list(stages)[-1]]
    assert last == sum(row["nonzeros"] for row in result.rows) == result.model.nonzeros - kept
    # dead states of layers that are no matrices are dropped at the end
    assert last == budget or (sweeps and kind != "matrices" and last < budget)


@pytest.mark.parametrize("name", ["shared", "tied"])
@pytest.mark.parametrize("structure", ["triangular", "layered"])
def test_weights_that_equations_share_stay_shared_and_count_once(name, structure):
    net, u = seeded(CAPTURED[name]), example(40)
    N0 = capture(net, u).nonzeros
    result = fit(net, u, Recipe(sparsity=0.5, structure=structure))
    assert result.model.nonzeros == round(0.5 * N0)
    parameters = [
        t.parameter for e in result.model.equations.layers for t in e.terms if t.parameter
    ]
    shared = max(parameters, key=parameters.count)
    uses = [
        t.weight for e in result.model.equations.layers for t in e.terms if t.parameter == shared
    ]
    assert len(uses) == 2 and torch.equal(uses[0], uses[1])


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_seeds_pruning_zeroes_that_percentage_of_every_group(kind):
    full, pruned = (
        quick_fit(kind, Recipe(alpha=1e-6, closed_loop=False, sparsity_ratio=ratio)).model.equations
        for ratio in (0.0, 30.0)
    )
    for rows in rows_of(full):
        before, after = (rows.weights(e.layers[rows.index]) for e in (full, pruned))
        for one, two in zip(before, after, strict=True):
            count = int(one.numel() * 30.0 / 100)
            dead = int((one == 0).sum())
            assert int((two == 0).sum()) == max(count, dead)


def test_states_that_overflow_are_named():
    for kind in NETWORKS:
        u = inputs(kind)
        with pytest.raises(InputError, match="states are not finite on the calibration"):
            quick_fit(kind, Recipe(), u * (1e308 / u.abs().max()))
        with pytest.raises(InputError, match=r"are of size \de[+]\d\d on the calibration inputs"):
            quick_fit(kind, Recipe(), u * 1e20)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_layer_that_is_always_off_is_matched_by_nothing(kind):
    net, u = seeded(NETWORKS[kind]).eval(), inputs(kind)
    modules = list(net.children())
    first = next(m for m in modules if isinstance(m, (nn.Linear, nn.Conv2d)))
    off = modules[1] if isinstance(modules[1], (nn.BatchNorm2d, nn.LayerNorm)) else first
    assert off.bias is not None
    with torch.no_grad():
        off.bias.fill_(-100.0)
    result = fit(net, u, Recipe(sparsity=0.5))
    assert {row["status"] for row in result.rows} == {"solved"}
    torch.testing.assert_close(
        predictions(result.model, u), predictions(net, u), rtol=1e-3, atol=1e-3
    )
    assert result.model.nonzeros <= capture(net, u).nonzeros // 2
    if kind in ("matrices", "convolutions"):
        assert math.isfinite(result.model.certificate.norm)


@pytest.mark.parametrize("name", SMALL)
def test_without_sparsity_the_network_is_reproduced(name):
    net, u = convolutional(name), images(12)
    model = read_fit(name, u, Recipe(sparsity=0.0, structure="layered", sweeps=0)).model
    for v in (u, images(4) + 0.1):
        y = predictions(net, v)
        torch.testing.assert_close(predictions(model, v), y, rtol=1e-5, atol=1e-5 * float(y.std()))
    assert model.sparsity == 0


@pytest.mark.parametrize("name", SMALL)
def test_the_budget_is_met_exactly_whatever_the_layers(name):
    sparsity = 0.7
    result = read_fit(name, images(12), Recipe(sparsity=sparsity), batch_size=5)
    N0 = structured(name).nonzeros
    kept = sum(structured(name).kept_weights.values())
    assert result.model.nonzeros == round((1 - sparsity) * N0)
    assert sum(row["nonzeros"] for row in result.rows) == result.model.nonzeros - kept
    for row in result.rows:
        # few samples: the last digits of a bound may be out of reach, it is one all the same
        assert row["status"] in ("solved", "solved_inaccurate")
        assert row["bound"] <= row["objective"] * (1 + 1e-9) + 1e-12


def test_a_closed_loop_brings_the_outputs_nearer():
    net, u = seeded(lambda: ResNet20(2, 1, 3)).eval(), images(30)
    closed, opened = (
        distance(net, fit(net, u, Recipe(sparsity=0.75, closed_loop=loop)).model, u)
        for loop in (True, False)
    )
    assert closed < opened


@pytest.mark.parametrize("sensitivity", [True, False])
def test_a_network_of_convolutions_on_one_place_is_matched_as_its_matrices_are(sensitivity):
    convolutions = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(6, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 5, 1, bias=False)),
            *(nn.ReLU(), nn.Conv2d(5, 3, 1, bias=False), nn.Flatten()),
        )
    )
    matrices = nn.Sequential(
        *(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 5, bias=False), nn.ReLU()),
        nn.Linear(5, 3, bias=False),
    ).double()
    matrices.load_state_dict({k: v.flatten(1) for k, v in convolutions.state_dict().items()})
    u = images(80, (6, 1, 1))
    # sweeps also fold the constant states of matrices, and of them alone
    recipe = Recipe(sparsity=0.5, structure="layered", sweeps=0, sensitivity=sensitivity)
    one = fit(convolutions.eval(), u, recipe)
    other = fit(matrices.eval(), u.flatten(1), recipe)
    torch.testing.assert_close(
        predictions(one.model, u), predictions(other.model, u.flatten(1)), rtol=1e-3, atol=1e-3
    )
    assert [r["nonzeros"] for r in one.rows] == [r["nonzeros"] for r in other.rows]


def test_dead_channels_and_single_samples_are_no_obstacle():
    net = seeded(lambda: ResNet20(3, 1, 5)).eval()
    with torch.no_grad():
        net.get_parameter("bn1.bias")[:2] = -100.0  # two channels of the first layer are never on
        for name in ("weight", "bias"):  # a block that is only its shortcut
            net.get_parameter(f"layer1.0.bn2.{name}").zero_()
    for u in (images(8), images(1)):
        result = fit(net, u, Recipe(sparsity=0.5), batch_size=1)
        assert predictions(result.model, u).isfinite().all()
        assert result.model.nonzeros <= round(0.5 * capture(net, u).nonzeros) + 1


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(alpha=1e-4),
        Recipe(objective="robustness"),
        Recipe(sparsity=0.5, support="relaxation"),
        Recipe(sparsity=0.5, bias=False, relu_aware=False),
    ],
)
def test_other_recipes_reach_convolutions_too(recipe):
    net, u = convolutional("in place, reused"), images(30)
    result = fit(net, u, recipe)
    assert {row["status"] for row in result.rows} == {"solved"}
    if recipe.sparsity:
        # the relaxation gives no weight to what is never on
        assert recipe.sparsity - 1e-2 <= result.model.sparsity <= recipe.sparsity + 0.05


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "matrices"])
@pytest.mark.parametrize("structure", ["full", "triangular"])
def test_structures_that_would_write_A_out_are_refused(kind, structure):
    with pytest.raises(InputError, match="^structure='.*accepted are layered and auto$"):
        quick_fit(kind, Recipe(sparsity=0.5, structure=structure))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_network_is_inside_its_ball(structure):
    """Its own weights obey the constraint under which rows are solved."""
    from simplicit.calibration.ball import RowConstraint
    from simplicit.matching.plan import row_problem

    recipe = Recipe(structure=structure, constraint="states" if structure == "full" else "row")
    equations = in_structure(read("matrices"), structure)
    for kappa in (0.3, 0.99):
        constraint = RowConstraint(read("matrices"), recipe.constraint, kappa)
        for rows in rows_of(equations):
            equation = equations.layers[rows.index]
            W = torch.nn.functional.pad(rows.weights(equation)[0], (0, 1))
            gram = Gram.from_data(
                torch.ones(3, W.shape[1]).double(), torch.ones(3, len(W)).double()
            )
            ball = constraint.ball(rows, equations, 1)
            terms = row_problem(gram, recipe, rows.sources(equations), True, ball).terms
            if rows.index == len(equations.hidden):
                assert not terms.has_ball
                continue
            # as a whole row the network has norm 1, of which κ is left
            room = 1.0 if recipe.constraint == "states" else kappa
            assert (room * terms.ball_norm(W) <= terms.radius[:, 0] * (1 + 1e-12)).all()
            assert terms.omega[-1] == 0
