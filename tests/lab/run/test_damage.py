"""Files of a run that are damaged are set aside and made again, or refused by name."""

import json
from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from simplicit.errors import InputError
from simplicit.lab.run import origin
from simplicit.lab.run import run as run_module
from simplicit.lab.run.compare import compare
from simplicit.model.archive import sealed
from simplicit.system import lock
from small_run import contents, hurry, settings, small_run

BOTH = "seeds=[0,1]"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


RUINS = {
    "cut short": lambda content: content[: len(content) * 2 // 3],
    "emptied": lambda _: b"",
    "something else": lambda _: b"\xff\x00mine",
}


def results(folder: Path) -> dict[str, object]:
    """All that was made, less times."""
    clock = ("seconds", "inference_seconds", "peak_memory", "bytes")
    rows = json.loads((folder / "metrics.json").read_text())
    found: dict[str, object] = {
        "metrics": [{k: v for k, v in row.items() if not k.startswith(clock)} for row in rows]
    }
    for path in folder.rglob("*.safetensors"):
        found[str(path.relative_to(folder))] = {k: v.tolist() for k, v in load_file(path).items()}
    for name in ("rows", "layers", "budget", "convergence"):
        lines = (folder / f"{name}.csv").read_text().splitlines()
        found[name] = sorted(lines)
    return found


def ruin(path: Path, how: str) -> None:
    path.write_bytes(RUINS[how](path.read_bytes()))


FILES = (
    *("metrics.json", "rows.csv", "layers.csv", "explicit.safetensors"),
    *("seed-1/model.safetensors", "model.json", "environment.json"),
)


# every file, and every ruin, not each of each: a run is seconds
@pytest.mark.parametrize(("file", "how"), [*zip(FILES, cycle(RUINS), strict=False)])
def test_what_can_be_made_again_is(finished, copied, capsys, file, how):
    ruin(copied / file, how)
    small_run(copied, BOTH)
    said = [line for line in capsys.readouterr().err.splitlines() if "is damaged (" in line]
    file = "model.safetensors" if file == "model.json" else file  # the two belong together
    assert len(said) == 1 and said[0].startswith(f"{copied / file} is damaged (")
    assert (copied / f"{file}.damaged").exists()
    assert results(copied) == results(finished)
    kept = set(contents(copied)) - {f"{file}.damaged"}
    assert kept == set(contents(finished))


def test_one_bit_of_the_network_is_noticed(finished, copied, capsys):
    path = copied / "explicit.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    small_run(copied, BOTH)
    assert "(its checksum differs): it is kept as" in capsys.readouterr().err
    assert results(copied) == results(finished)


def test_models_of_a_network_that_is_not_the_same_again_are_made_again(
    finished, copied, monkeypatch, capsys
):
    (copied / "explicit.safetensors").write_bytes(b"")
    train = run_module.SeedRun._load_or_train

    def other(self):
        net, seconds = train(self)
        if self.seed == 0:
            with torch.no_grad():
                next(net.parameters()).mul_(1.25)
            sealed.write(copied / "explicit.safetensors", net.state_dict(), {"seconds": "1"})
        return net, seconds

    monkeypatch.setattr(run_module.SeedRun, "_load_or_train", other)
    small_run(copied, BOTH)
    assert "the explicit network of seed 0 is not known to have the bits" in capsys.readouterr().err
    old, new = results(finished), results(copied)
    assert new["model.safetensors"] != old["model.safetensors"]
    assert new["seed-1/model.safetensors"] == old["seed-1/model.safetensors"]


@pytest.mark.parametrize("how", ["emptied", "something else"])
def test_a_damaged_configuration_is_refused_by_name(copied, how):
    ruin(copied / "config.yaml", how)
    before = contents(copied)
    with pytest.raises(InputError, match=f"run folder {copied}: {copied}/config.yaml"):
        small_run(copied, BOTH)
    assert contents(copied) == before


def test_weights_of_somebody_else_need_no_checksum(finished, copied, capsys):
    path = copied / "explicit.safetensors"
    save_file(load_file(path), path)
    before = contents(copied)
    small_run(copied, BOTH)
    assert "damaged" not in capsys.readouterr().err
    assert contents(copied) | {"report.html": b""} == before | {"report.html": b""}


def begun(folder: Path) -> Path:
    """A finished run without its last model."""
    rows = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(rows[:-1]))
    return folder


def environment(folder: Path, **changed: object) -> None:
    path = folder / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_other_data_are_refused(copied):
    environment(copied, data="0123")
    before = contents(copied)
    with pytest.raises(InputError, match="begun with other data: their digest is 0123 there"):
        small_run(copied, BOTH)
    assert contents(copied) == before


def test_every_image_and_label_is_seen(monkeypatch):
    dataset = run_module.data.load("digits", None)
    found = {origin.fingerprint(dataset)}
    for name in ("train_inputs", "test_inputs", "train_labels", "test_labels"):
        values = getattr(dataset, name)
        values.view(-1)[7] += 1
        found.add(origin.fingerprint(dataset))
        values.view(-1)[7] -= 1
    assert len(found) == 5 and origin.fingerprint(dataset) in found


def test_another_version_does_not_go_on_with_a_run_but_reads_a_finished_one(copied):
    environment(copied, code="of another day", simplicit="0.0.9")
    small_run(copied, BOTH)
    small_run(copied, BOTH, "implicit.evaluate=true")
    begun(copied)
    before = contents(copied)
    with pytest.raises(InputError, match=r"version of simplicit: 0\.0\.9 \(code of another day\)"):
        small_run(copied, BOTH)
    assert contents(copied) == before


def test_another_version_of_a_library_is_a_note(copied, capsys):
    environment(copied, torch="1.0")
    small_run(copied, BOTH)
    assert "note:" not in capsys.readouterr().err
    small_run(begun(copied), BOTH)
    assert 'note: torch is "1.0" there, ' in capsys.readouterr().err


def test_what_changes_no_result_may_differ(copied):
    before = contents(copied)
    small_run(copied, BOTH, "implicit.workers=1", "explicit.log_interval=7")
    assert contents(copied) | {"report.html": b""} == before | {"report.html": b""}


def test_every_key_that_differs_is_named_up_to_a_number(copied):
    with pytest.raises(InputError) as error:
        small_run(copied, "explicit.lr=0.5", "implicit.alpha=7", "implicit.sparsity=null")
    told = str(error.value)
    assert "explicit.lr is 0.01 there, 0.5 here; " in told
    assert "implicit.alpha is 0.01 there, 7.0 here" in told
    assert "implicit.sparsity is 0.75 there, not set here" in told
    assert "; seeds is [0, 1] there, [0] here; give another folder" in told
    assert "\n" not in told
    assert origin.differences(dict.fromkeys("abcdefgh", 1), {}).endswith("; and 2 more")


def test_runs_that_are_begun_at_once_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20200101-000000")
    made = []
    for _ in range(3):
        made.append(run_module.default_folder("digits"))
        made[-1].mkdir(parents=True)
    first = "runs/digits-20200101-000000"
    assert [path.as_posix() for path in made] == [first, f"{first}-2", f"{first}-3"]


def test_a_part_of_a_comparison_that_is_in_use_is_refused(tmp_path):
    given = [settings("implicit.sparsity=0.5")]
    with lock.held(tmp_path / "out" / "sparsity-0.5"):
        with pytest.raises(InputError, match="out/sparsity-0.5 is in use by process"):
            compare(given, tmp_path / "out")
    assert contents(tmp_path) == {}


def test_a_comparison_keeps_out_of_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        compare([settings("implicit.sparsity=0.5")], tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_comparison_of_another_configuration_or_version_is_refused(copied, tmp_path):
    (tmp_path / "out").mkdir()
    part = copied.rename(tmp_path / "out" / "sparsity-0.75")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="sparsity-0.75 exists .* explicit.lr is 0.01 there"):
        compare([settings(BOTH, "implicit.sparsity=0.5", "explicit.lr=1")], tmp_path / "out")
    assert contents(tmp_path) == before
    environment(part, code="of another day")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="is of a comparison that was begun with another v"):
        compare([settings(BOTH, f"implicit.sparsity={s}") for s in (0.75, 0.5)], tmp_path / "out")
    assert contents(tmp_path) == before
    compare([settings(BOTH)], tmp_path / "out")
