"""What the report says in words and sums."""

import math

import pytest

from fake_run import metrics
from simplicit.lab.report.findings import layers, percent, results, summary


def one_seed(**implicit) -> list[dict]:
    explicit, model = metrics((0,))
    return [explicit, model | implicit]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"test_accuracy": 0.8725}, "0.20 points gained"),
        ({"test_accuracy": 0.8705}, "none lost"),
        ({"sparsity": -1.3}, "2.3 times the explicit network's non-zero weights"),
        ({"sparsity": -1.3}, "\N{MINUS SIGN}130.00 % (negative: it has more)"),
        ({"certificate_norm": 1.2}, "well-posedness is not proven"),
        ({"certificate_norm": math.nan}, "well-posedness is not proven"),
        ({"converged": 0.99999}, "found for 99.99 % of the test samples"),
    ],
)
def test_summary_says_what_is_the_case(change, expected):
    assert expected in summary(one_seed(**change))


def test_summary_of_one_seed_speaks_of_no_mean():
    assert "seeds" not in summary(one_seed())


def test_summary_leaves_out_what_is_unknown():
    assert summary([{"model": "implicit"}]) == ""
    assert "classifies" not in summary(one_seed(test_accuracy=None))


def test_one_seed_in_three_without_a_proof_is_no_proof():
    rows = metrics()
    rows[3]["certificate_norm"] = math.nan
    assert "not proven" in summary(rows)


def test_points_are_against_the_same_seed_and_means_come_last():
    rows = results(metrics())
    assert [row["seed"] for row in rows] == [0, 0, 1, 1, 2, 2, "mean", "mean"]
    points = [row["points"] for row in rows if row["model"] == "implicit"]
    assert points == pytest.approx([-1.13, -1.03, -0.93, -1.03])
    assert rows[-1]["test_accuracy"] == pytest.approx(0.8612)


def test_one_seed_has_no_mean():
    assert [row["seed"] for row in results(metrics((3,)))] == [3, 3]


def test_a_missing_number_is_not_averaged_away():
    rows = metrics()
    rows[1]["test_accuracy"] = None
    assert math.isnan(results(rows)[-1]["test_accuracy"])


def test_layers_keep_seeds_and_statuses_apart_and_nan_in_sight():
    def row(layer, seed, status, gap):
        return {"layer": layer, "seed": seed, "status": status, "relative_gap": gap,
                "nonzeros": "3", "iterations": "7"}  # fmt: skip

    found = layers(
        [row("0", "0", "SOLVED", "1e-5"), row("0", "0", "solved", "2e-5"),
         row("0", "0", "trimmed", "0.25"), row("0", "1", "solved", "nan")],
        {"0": "hidden 1"},
    )  # fmt: skip
    first, second = found
    assert (first["layer"], first["seed"], first["rows"], first["solved"]) == (
        "hidden 1",
        "0",
        3,
        2,
    )
    assert (first["worst"], first["other"]) == (2e-5, "1 × trimmed (0.25)")
    assert (first["nonzeros"], first["iterations"]) == (9, 7)
    assert math.isnan(second["worst"])


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(1.0, "100.00 %"), (0.999999, "99.99 %"), (0.5, "50.00 %"), (-0.1, "\N{MINUS SIGN}10.00 %")],
)
def test_percent_is_hundred_only_for_all(fraction, expected):
    assert percent(fraction) == expected
