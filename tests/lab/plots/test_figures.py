"""Figures of a run folder: what they show, what they leave out, and that they leave no trace."""

import ast
import csv
import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from fake_run import N0, SIZES, N, P, Q, fake_run, metrics, weights
from random_models import implicit_model
from simplicit.errors import InputError
from simplicit.lab import plots
from simplicit.lab.plots import style
from simplicit.lab.plots.figures import (
    comparison,
    curves,
    gap,
    layers,
    magnitudes,
    pattern,
    pixels,
    residual,
)
from simplicit.lab.plots.save import save
from simplicit.lab.results.matrices import Matrices, layer_labels, matrices
from simplicit.model.saved import load


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = fake_run(tmp_path_factory.mktemp("runs") / "run")
    plots.draw_all(folder)
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def small_model() -> Matrices:
    A = np.array([[0.0, 1.0], [0.0, 0.0]])
    return Matrices(
        A=A, B=np.eye(2, 4), C=np.array([[2.0, 0.0]]), D=np.array([[0.0, 0.0, 0.0, 3.0]]),
        blocks=(("2", 1), ("0", 1)), input_shape=(2, 2), structure="triangular",
    )  # fmt: skip


def test_every_figure_comes_as_image_and_table(run):
    found = {path.name for path in (run / "plots").iterdir()}
    assert found == {f"{name}.{kind}" for name in plots.FIGURES for kind in ("png", "csv")} | {
        plots.SKIPPED
    }
    assert json.loads((run / "plots" / plots.SKIPPED).read_text()) == {}
    for name in plots.FIGURES:
        with Image.open(run / "plots" / f"{name}.png") as image:
            image.load()
            assert min(image.size) >= 300
            assert len(np.unique(np.asarray(image.convert("L")))) > 10  # not blank
        assert table(run / "plots" / f"{name}.csv")


def test_drawing_twice_gives_the_same_bytes(run, tmp_path):
    before = (run / "plots" / "comparison.png").read_bytes()
    save(comparison.from_run(run), tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == before


def test_pyplot_and_global_settings_are_untouched(run):
    before = dict(matplotlib.rcParams)
    save(comparison.from_run(run), run / "again.png")
    assert dict(matplotlib.rcParams) == before


def test_plots_know_neither_torch_nor_pyplot():
    for path in Path(plots.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] == "torch" or "pyplot" in n for n in names), path


def test_unfinished_run_gets_the_figures_it_has_data_for(tmp_path):
    run = fake_run(tmp_path / "run")
    (run / "plots").mkdir()
    for stale in ("pattern.png", "pattern.csv", "gap.png"):
        (run / "plots" / stale).write_text("of an earlier run")
    for file in ("model.safetensors", "trace.csv"):
        (run / file).unlink()
    (run / "convergence.csv").write_text("model,seed,step\nimplicit,0,0\n")
    assert [path.stem for path in plots.draw_all(run)] == ["comparison", "layers", "budget"]
    left = sorted(path.name for path in (run / "plots").iterdir())
    names = ("budget", "comparison", "layers")
    assert left == [*(f"{n}.{kind}" for n in names for kind in ("csv", "png")), plots.SKIPPED]
    skipped = json.loads((run / "plots" / plots.SKIPPED).read_text())
    assert set(skipped) == {"pattern", "magnitudes", "pixels", "gap", "residual"}
    assert "model.safetensors is missing" in skipped["pattern"]
    assert "trace.csv is missing" in skipped["gap"]
    assert "lacks the column residual_median, residual_max" in skipped["residual"]


def test_a_model_of_one_step_has_no_iteration_to_draw(tmp_path):
    run = fake_run(tmp_path / "run")
    line = "implicit,0,1,1e-7,2e-7\n"
    (run / "convergence.csv").write_text(f"model,seed,step,residual_median,residual_max\n{line}")
    with pytest.raises(InputError, match="no iteration to draw"):
        residual.from_run(run)


def test_damaged_files_are_reasons_not_crashes(tmp_path):
    run = fake_run(tmp_path / "run")
    (run / "model.safetensors").write_bytes(b"\x00" * 20)
    (run / "metrics.json").write_text("[{")
    (run / "trace.csv").write_text("layer,seconds,gap_median,gap_max\n")
    assert [path.stem for path in plots.draw_all(run)] == ["layers", "budget", "residual"]
    skipped = json.loads((run / "plots" / plots.SKIPPED).read_text())
    assert "damaged" in skipped["pattern"]
    assert "not valid JSON" in skipped["comparison"]
    assert "no rows" in skipped["gap"]


def test_no_such_run(tmp_path):
    with pytest.raises(InputError, match="no such run folder"):
        plots.draw_all(tmp_path / "nowhere")


def test_nothing_half_written(tmp_path, monkeypatch):
    drawing = comparison.draw(metrics())
    save(drawing, tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def full_disk(file, **_):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(drawing.figure, "savefig", full_disk)
    with pytest.raises(OSError, match="No space"):
        save(drawing, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.png"]


def test_matrices_are_those_that_were_saved(run):
    _, expected = weights(np.random.default_rng(0))
    model = matrices(run)
    for name in "ABCD":
        np.testing.assert_array_equal(getattr(model, name), expected[name].astype(np.float32))
    assert model.whole.shape == (N + Q, N + P)
    assert model.rows == [("hidden 3", 16), ("hidden 2", 32), ("hidden 1", 64), ("output", Q)]
    assert model.columns[-1] == ("input", P)


def test_layers_with_names_keep_them():
    assert layer_labels(["fc2", "layers.0"]) == {"fc2": "fc2", "layers.0": "layers.0"}
    assert layer_labels(list(SIZES)) == {"4": "hidden 3", "2": "hidden 2", "0": "hidden 1"}


def test_pattern_has_every_nonzero_of_a_model_this_size(run):
    whole = matrices(run).whole
    shown = {(int(r["row"]), int(r["column"])) for r in table(run / "plots" / "pattern.csv")}
    assert shown == set(zip(*map(list, np.nonzero(whole)), strict=True))


@pytest.mark.parametrize("most", [1, 3, 7, 50])
def test_merged_cells_lose_no_nonzero(most):
    ruler = pattern.Ruler((16, 32, 5))
    edges = ruler.cells(most)
    assert set(ruler.starts) <= set(edges)
    assert (np.diff(edges) > 0).all()
    assert len(edges) - 1 <= max(most, 3)
    nonzero = np.random.default_rng(0).random((53, 53)) < 0.02
    areas = np.outer(np.diff(edges), np.diff(edges))
    assert (pattern.merge(nonzero, edges, edges) * areas).sum() == pytest.approx(nonzero.sum())


def test_pixels_count_B_and_D():
    np.testing.assert_array_equal(pixels.pixel_counts(small_model()), [[1, 1], [0, 1]])


@pytest.mark.parametrize(
    ("shape", "image"), [((784,), (28, 28)), ((1, 28, 28), (28, 28)), ((4, 14, 14), (14, 14))]
)
def test_pixels_of_shapes(shape, image):
    model = Matrices(
        A=np.zeros((1, 1)), B=np.ones((1, 784)), C=np.zeros((1, 1)), D=np.zeros((1, 784)),
        blocks=(("0", 1),), input_shape=shape, structure="layered",
    )  # fmt: skip
    counts = pixels.pixel_counts(model)
    assert counts.shape == image
    assert counts.sum() == 784


def test_pixels_refuses_what_is_no_image():
    model = small_model()
    with pytest.raises(InputError, match=r"\(4,\) is not an image"):
        pixels.pixel_counts(Matrices(**{**vars(model), "input_shape": (4,)}))


def test_magnitudes_count_every_weight_of_both_networks(run):
    rows = table(run / "plots" / "magnitudes.csv")
    total = {m: sum(int(r["weights"]) for r in rows if r["model"] == m) for m in
             ("explicit", "implicit")}  # fmt: skip
    assert total == {"explicit": N0, "implicit": np.count_nonzero(matrices(run).whole)}
    first = {r["layer"] for r in rows}
    assert first == {"hidden 1", "hidden 2", "hidden 3", "output"}
    explicit = sum(
        int(r["weights"]) for r in rows if (r["layer"], r["model"]) == ("hidden 1", "explicit")
    )
    assert explicit == 64 * 784


def test_magnitudes_without_the_explicit_weights():
    drawing = magnitudes.draw(magnitudes.by_layer(small_model(), {}))
    assert {row["model"] for row in drawing.data} == {"implicit"}
    assert sum(row["weights"] for row in drawing.data) == 5


def test_magnitudes_of_an_empty_model():
    empty = [("output", {"implicit": np.array([[0.0, np.nan, np.inf]])})]
    with pytest.raises(InputError, match="no non-zero weight"):
        magnitudes.draw(empty)


def test_comparison_bars_may_be_negative_and_seeds_are_dots():
    rows = metrics()
    for row in rows[1::2]:
        row["sparsity"] = -1.3
    drawing = comparison.draw(rows)
    left, right = drawing.figure.axes
    widths = [bar.get_width() for bar in right.patches if isinstance(bar, Rectangle)]
    assert widths == pytest.approx([0, -1.3])
    assert right.get_xlim()[0] < -1.3
    assert [np.shape(dots.get_offsets())[0] for dots in left.collections] == [3, 3]
    assert "\N{MINUS SIGN}130 %" in {text.get_text() for text in right.texts}


def test_log_axes_keep_zeros_and_drop_what_is_not_finite():
    figure = style.new_figure(2.0, 2.0)
    values = np.array([1.0, 1e-9, 0.0, np.nan, np.inf])
    floor = style.log_scale(figure.add_subplot(), values)
    assert 0 < floor < 1e-9
    np.testing.assert_array_equal(style.on_log(values, floor), [1, 1e-9, floor, np.nan, np.nan])


def test_bad_numbers_are_drawn_around(tmp_path):
    bad = [np.nan, np.inf, -np.inf, "", None, 0.0, "?"]
    good_gap = {"layer": "0", "seconds": 1.0, "gap_median": 1e-3, "gap_max": 1e-2}
    good = {"model": "implicit", "seed": 0, "step": 0, "residual_median": 0.5, "residual_max": 1}
    drawings = [
        comparison.draw(
            [*metrics(), *({"model": repr(x), "test_accuracy": x, "sparsity": x} for x in bad)]
        ),
        gap.draw([good_gap, *(good_gap | {"gap_max": x} for x in bad)], 1e-4),
        residual.draw([good, *(good | {"step": i, "residual_max": x} for i, x in enumerate(bad))]),
    ]
    for i, drawing in enumerate(drawings):
        drawing.figure.dpi = 40
        save(drawing, tmp_path / f"{i}.png")
        assert len(drawing.data) >= len(bad)


@pytest.mark.parametrize(
    ("config", "expected"),
    [("implicit: {tol: 1e-6}", 1e-6), ("implicit: {}", np.nan), ("implicit: [", np.nan)],
)
def test_tolerance_line_is_the_runs_own(tmp_path, config, expected):
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "trace.csv").write_text("layer,seconds,gap_median,gap_max\n0,1,0.1,0.2\n")
    (axes,) = gap.from_run(tmp_path).figure.axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert ("tolerance" in lines) == np.isfinite(expected)
    if "tolerance" in lines:
        assert np.asarray(lines["tolerance"].get_ydata())[0] == expected
        assert axes.get_ylim()[0] <= expected


def test_nothing_to_draw_is_said():
    with pytest.raises(InputError, match="no finite gap"):
        gap.draw([{"layer": "0", "seconds": 0, "gap_median": np.nan, "gap_max": np.inf}], 1e-4)
    with pytest.raises(InputError, match="no finite residual"):
        residual.draw([{"model": "a", "seed": 0, "step": 0, "residual_median": "nan"}])
    with pytest.raises(InputError, match="neither an accuracy nor a sparsity"):
        comparison.draw([{"model": "explicit", "seed": 0}])


def counted(model: str, nonzeros: Mapping[str, object], seed: int = 0) -> list[dict[str, object]]:
    return [{"seed": seed, "model": model, "layer": k, "nonzeros": v} for k, v in nonzeros.items()]


def test_layers_show_means_over_the_seeds_and_shares_of_the_explicit_network():
    rows = counted("explicit", {"conv1": 10, "dead": 0, "fc": "40"})
    rows += counted("explicit", {"conv1": 20, "dead": 0, "fc": 40}, seed=1)
    rows += counted("implicit", {"conv1": 3, "dead": 0, "fc": 50, "new": 7})
    rows += counted("obs", {"conv1": "nan", "fc": 10})
    drawing = layers.draw(rows)
    found = {(r["model"], r["layer"]): r["share"] for r in drawing.data}
    assert found == {
        ("explicit", "conv1"): 1, ("explicit", "fc"): 1, ("implicit", "conv1"): 0.2,
        ("implicit", "fc"): 1.25, ("obs", "fc"): 0.25,
    }  # fmt: skip
    left, right = drawing.figure.axes
    bars = [bar.get_width() for bar in left.patches if isinstance(bar, Rectangle)]
    assert bars == pytest.approx([0.2, 1.25])
    assert [label.get_text() for label in left.get_yticklabels()] == ["conv1", "fc"]
    outlines = [b for b in right.patches if isinstance(b, Rectangle) and not b.get_fill()]
    assert [bar.get_width() for bar in outlines] == [15, 40]


def test_layers_of_many_fit_and_of_none_are_said():
    many = {f"layer{i}.{j}.conv": 100 for i in range(5) for j in range(11)}
    drawing = layers.draw(counted("explicit", many) + counted("magnitude", many))
    assert drawing.figure.get_figheight() > 55 * 0.2
    with pytest.raises(InputError, match="no layer of the explicit network beside"):
        layers.draw(counted("explicit", many) + counted("implicit", {"states": 3}))


@pytest.mark.parametrize("structure", ["full", "triangular", "layered"])
def test_matrices_of_this_release_and_of_the_first(structure, tmp_path):
    implicit_model(structure, density=0.4).save(tmp_path)
    for folder in (tmp_path, Path(__file__).parents[2] / "model/archive/fixtures" / structure):
        found, model = matrices(folder), load(folder)
        for name in "ABCD":
            written_out = getattr(model, name).to_dense().detach().double().numpy()
            assert np.array_equal(getattr(found, name), written_out)
        assert found.blocks == tuple((b.name, b.size) for b in model.blocks)


def test_a_model_with_convolutions_is_a_reason_not_a_crash(tmp_path):
    run = fake_run(tmp_path / "run")
    header = json.loads((run / "model.json").read_text())
    linear = header["equations"]["output"]["terms"][0]["map"]
    linear["is"] = "Conv"
    (run / "model.json").write_text(json.dumps(header))
    drawn = [path.stem for path in plots.draw_all(run)]
    assert drawn == ["comparison", "layers", "budget", "gap", "residual"]
    skipped = json.loads((run / "plots" / plots.SKIPPED).read_text())
    assert set(skipped) == {"pattern", "magnitudes", "pixels"}
    assert all("has convolutions" in reason for reason in skipped.values())
    linear["is"] = "Dense"
    header["blocks"][0]["size"] = 10**5
    (run / "model.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match="more than a figure can show"):
        matrices(run)


def test_models_keep_their_colours():
    colours = style.colours(["magnitude", "explicit", "obs"])
    assert colours["explicit"] == style.EXPLICIT
    assert len(set(colours.values())) == 4


def test_curves_of_equal_seeds_whose_mean_is_rounded():
    rows = [
        {
            "model": m,
            "seed": s,
            "sparsity": 0.9,
            "target": 0.9,
            "test_accuracy": 0.1,
            "seconds": 0.1,
        }
        for m in ("implicit", "random")
        for s in range(3)
    ]
    drawing = curves.draw(rows)
    assert len(drawing.data) == 6 and len(drawing.figure.axes) == 2
