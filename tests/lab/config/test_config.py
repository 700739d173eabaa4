from pathlib import Path

import pytest
from pydantic import ValidationError

from simplicit.errors import InputError
from simplicit.lab.config.config import Config, load, load_each
from simplicit.lab.config.errors import dotted_keys

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture
def write(tmp_path: Path):
    def writer(text: str | bytes) -> Path:
        path = tmp_path / "config.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return writer


@pytest.fixture
def base(write) -> Path:
    return write("evaluation: {dataset: digits}\n")


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_loads_and_survives_a_round_trip(path: Path, write) -> None:
    for config in load_each(path):
        assert load(write(config.to_yaml())) == config


def test_a_list_of_sparsities_is_one_configuration_each(base: Path) -> None:
    both = load_each(base, ["implicit.sparsity=[0.5,0.75]", "implicit.kappa=0.9"])
    assert both == tuple(
        load(base, [f"implicit.sparsity={s}", "implicit.kappa=0.9"]) for s in (0.5, 0.75)
    )
    assert load_each(base) == (load(base),)
    assert "simplicit compare" in message(base, "implicit.sparsity=[0.5,0.75]")


@pytest.mark.parametrize("wrong", ["[]", "[0.5,0.5]", "[0.5,1.5]", "[0.5,high]"])
def test_a_list_of_sparsities_that_is_not_accepted(base: Path, wrong: str) -> None:
    with pytest.raises(InputError, match=r"implicit\.sparsity = .*accepted is a number"):
        load_each(base, [f"implicit.sparsity={wrong}"])


def test_the_first_releases_files_mean_what_they_meant() -> None:
    readme, sparsity = load(CONFIGS / "seed-readme.yaml"), load(CONFIGS / "seed-sparsity.yaml")
    assert readme.implicit.alpha == 1e-3
    assert readme.implicit.training_size == 0.05
    assert readme.implicit.sparsity is None
    assert readme.implicit.sparsity_ratio == 0
    assert sparsity.implicit.alpha == 1e-2
    assert sparsity.implicit.sparsity_ratio == 30
    assert sparsity.implicit.evaluate is False
    assert sparsity.implicit.workers == 32
    for config in (readme, sparsity):
        assert config.explicit.architecture == (784, 64, 32, 16, 10)
        assert config.explicit.bias is False
        assert config.evaluation.baselines == ("explicit", "implicit")
        assert config.evaluation.dataset == "FashionMNIST"


def test_overrides_win_and_are_typed(base: Path) -> None:
    config = load(
        base,
        [
            "implicit.alpha=1e-2",
            "implicit.evaluate=True",
            "implicit.sparsity=null",
            "seeds=[0,1,2]",
            "explicit.type=nets:Net",
            "explicit.arguments.width=3",
            "data_dir=/a=b",
        ],
    )
    assert config.implicit.alpha == 0.01
    assert config.implicit.evaluate is True
    assert config.seeds == (0, 1, 2)
    assert config.explicit.arguments == {"width": 3}
    assert config.data_dir == Path("/a=b")
    assert config.evaluation.dataset == "digits"


def test_a_configuration_is_frozen(base: Path) -> None:
    with pytest.raises(ValidationError):
        load(base).implicit.kappa = 0.5  # pyright: ignore[reportAttributeAccessIssue]


def test_the_preset_gives_defaults_that_the_file_may_change(base: Path, write) -> None:
    paper = load(base, ["implicit.preset=paper"])
    assert paper.implicit.structure == "full"
    assert not paper.implicit.bias
    assert not paper.implicit.closed_loop
    assert load(write(paper.to_yaml())) == paper
    biased = load(base, ["implicit.preset=paper", "implicit.bias=true"])
    assert biased.implicit.bias
    assert biased.implicit.structure == "full"
    silent = load(write("implicit: {preset: acml2025}"))
    assert (silent.implicit.constraint, silent.implicit.alpha) == ("row", 0.0)


def test_strings_that_look_like_other_things_survive_the_round_trip(base: Path, write) -> None:
    arguments = 'explicit.arguments={a: "1e-2", b: "null", c: 1e-5, d: [1, x], e: "yes"}'
    config = load(base, ["explicit.type=nets:Net", arguments])
    assert load(write(config.to_yaml())).explicit.arguments == config.explicit.arguments


def test_every_key_says_what_it_means_and_what_it_accepts() -> None:
    for name, field in dotted_keys(Config):
        assert field.description, name
        assert field.json_schema_extra["accepted"], name


@pytest.mark.parametrize(
    "override",
    [
        "implicit.kappa=0",
        "implicit.kappa=1",
        "implicit.kappa=high",
        "implicit.kappa=",
        "implicit.structure=ful",
        "implicit.objective=3",
        "implicit.preset=papers",
        "implicit.sparsity=1",
        "implicit.sparsity=-0.1",
        "implicit.sparsity_ratio=100",
        "implicit.lambda1=0",
        "implicit.lambda1=.inf",
        "implicit.alpha=-1",
        "implicit.tol=.nan",
        "implicit.training_size=0",
        "implicit.training_size=5",
        "implicit.workers=0",
        "implicit.evaluate=maybe",
        "implicit.bias=1",
        "explicit.architecture=[784]",
        "explicit.architecture=784",
        "explicit.architecture=[784, 0]",
        "explicit.architecture=[784, 10.5]",
        "explicit.optimizer=adam",
        "explicit.type=mynet",
        "explicit.epoch=1.5",
        "explicit.epoch='10'",
        "explicit.epoch=true",
        "explicit.lr=0",
        "explicit.log_interval=0",
        "evaluation.baselines=[explicit, explicit]",
        "evaluation.baselines=[]",
        "evaluation.metric=speed",
        "evaluation.dataset=mnist",
        "evaluation.bs=0",
        "seeds=0",
        "seeds=[]",
        "seeds=[1, 1]",
        "seeds=[-1]",
        "data_dir=3",
        "device=gpu",
        "implicit=3",
    ],
)
def test_an_impossible_value_is_named_with_what_is_accepted(base: Path, override: str) -> None:
    line = message(base, override)
    assert line.startswith(override.split("=")[0])
    assert "ccepted" in line


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("implicit.kapa=0.9", "implicit.kappa"),
        ("kappa=0.9", "implicit.kappa"),
        ("implicit.bs=3", "evaluation.bs"),
        ("seed=3", "seeds"),
        ("implcit.kappa=0.9", "implicit"),
        ("explicit.epochs=3", "explicit.epoch"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(base: Path, override: str, suggestion: str) -> None:
    line = message(base, override)
    assert "unknown key" in line
    assert f"did you mean {suggestion}? Accepted" in line


def test_a_mistyped_choice_gets_a_suggestion(base: Path) -> None:
    assert "did you mean full? Accepted are auto, full," in message(base, "implicit.structure=ful")
    assert "did you mean MNIST?" in message(base, "evaluation.dataset=mnist")


def test_further_errors_are_counted(write) -> None:
    line = message(write("implicit: {kappa: 2, alpha: -1, foo: 3}"))
    assert line == "implicit.kappa = 2: accepted is a number above 0 and below 1 (and 2 more)"


def test_arguments_need_an_import_path(base: Path) -> None:
    assert "import path" in message(base, "explicit.arguments.width=3")


@pytest.mark.parametrize(
    "override", ["kappa", "=3", "implicit..kappa=1", "seeds[0]=1", "implicit.kappa=[1", "-x=3"]
)
def test_a_malformed_override_is_quoted(base: Path, override: str) -> None:
    assert message(base, override).startswith(f"override {override!r}: ")


def test_an_override_below_a_list_is_one_line(base: Path, write) -> None:
    line = message(write("explicit: {architecture: [4, 2]}"), "explicit.architecture.x=3")
    assert line.endswith("explicit.architecture has no keys of its own")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no keys"),
        ("# nothing\n", "no keys"),
        ("[1, 2]", "no keys"),
        ("5", "not a mapping"),
        ("implicit:\n  kappa: [1\nseeds: [0]\n", ", line 3: not valid YAML"),
        ("implicit:\n  tol: 1\n  tol: 2\n", ", line 3: not valid YAML (found duplicate key tol)"),
        ("\timplicit: {}", ", line 1: not valid YAML"),
        ("implicit: {kappa: \x01}", "not valid YAML"),
        ("implicit: !!python/object:os.system {}", "not valid YAML"),
        (b"\xff\xfe\x00", "UTF-8"),
        ("implicit: {kappa: '${nowhere}'}", "implicit.kappa"),
    ],
)
def test_a_bad_file_is_named(write, text: str | bytes, part: str) -> None:
    path = write(text)
    line = message(path)
    assert line.startswith(str(path))
    assert part in line


@pytest.mark.parametrize("text", ["implicit:\n", "implicit: [1]", "explicit: {1: 2}", "hello"])
def test_a_section_that_is_none_is_one_line(write, text: str) -> None:
    assert "ccepted" in message(write(text))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert str(tmp_path / "no.yaml") in message(tmp_path / "no.yaml")
    assert "directory" in message(tmp_path)


def test_an_attack_that_knows_no_feedback_is_refused_with_it(base: Path) -> None:
    wanted = ["evaluation.metric=robustness", "evaluation.attacks=[relaxation]"]
    assert load(base, [*wanted, "implicit.structure=layered"]).evaluation.attacks == ("relaxation",)
    with pytest.raises(InputError, match="relaxation is for models without feedback"):
        load(base, [*wanted, "implicit.structure=full"])
