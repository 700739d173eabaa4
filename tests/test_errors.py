from simplicit.errors import did_you_mean, nearest


def test_nearest_ignores_case_and_small_slips() -> None:
    assert nearest("fashionmnist", ["MNIST", "FashionMNIST"]) == "FashionMNIST"
    assert nearest("kapa", ["alpha", "kappa"]) == "kappa"


def test_nothing_close_is_none() -> None:
    assert nearest("zebra", ["alpha", "kappa"]) is None
    assert did_you_mean("zebra", ["alpha", "kappa"]) == "accepted are alpha, kappa"


def test_long_lists_are_cut() -> None:
    line = did_you_mean("name7", [f"name{i}" for i in range(100)])
    assert "did you mean name7?" in line
    assert line.endswith("…")
    assert "name50" not in line
