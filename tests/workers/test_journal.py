"""What is finished is not done again, and what is damaged is not used."""

import torch
from torch import Tensor

from simplicit.workers import journal as module
from simplicit.workers.journal import Journal
from simplicit.workers.run import run
from simplicit.workers.workers import Workers

BEGUN: list[int] = []


def product(piece: tuple[int, Tensor]) -> tuple[int, Tensor]:
    BEGUN.append(piece[0])
    return piece[0], piece[1] @ piece[1].T


def pieces(count: int = 6, seed: int = 0) -> list[tuple[int, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(i, torch.randn(20, 20, generator=generator)) for i in range(count)]


def worked(path, given, most=None, problem="this", executor=None):
    """Answers of two calls, stopped after so many; which pieces were worked on."""
    BEGUN.clear()
    workers, found = Workers(executor), []
    with workers.keeping(Journal(path, problem)):
        for _ in range(2):
            for answer in run(product, given, workers):
                found.append(answer)
                if len(found) == most:
                    return found, list(BEGUN)
    return found, list(BEGUN)


def same(a, b) -> bool:
    return all(i == j and torch.equal(x, y) for (i, x), (j, y) in zip(a, b, strict=True))


def test_a_stop_costs_what_was_under_way(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST", 0.0)
    monkeypatch.setattr(module, "RATE", 1e12)
    monkeypatch.setattr(module, "UNWRITTEN", 0.0)
    path = tmp_path / "stage.journal"
    whole, _ = worked(tmp_path / "other.journal", pieces())
    _, begun = worked(path, pieces(), most=8)
    assert begun == [*range(6), 0, 1]
    found, begun = worked(path, pieces())
    assert same(found, whole) and begun == [2, 3, 4, 5]
    found, begun = worked(path, pieces())
    assert same(found, whole) and not begun
    # other pieces at the same place are worked on
    found, begun = worked(path, pieces(seed=1))
    assert begun == [*range(6)] * 2 and not same(found, whole)
    # and so is another problem
    assert worked(path, pieces(), problem="that")[1] == [*range(6)] * 2
    Journal(path, "that").remove()
    assert not path.exists()


def test_what_is_damaged_is_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST", 0.0)
    monkeypatch.setattr(module, "RATE", 1e12)
    path = tmp_path / "stage.journal"
    whole, _ = worked(path, pieces())
    content = path.read_bytes()
    for cut in (0, 5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        assert same(worked(path, pieces())[0], whole)
        assert not worked(path, pieces())[1]
    for place in range(0, len(content), len(content) // 7):
        spoilt = bytearray(content)
        spoilt[place] ^= 16
        path.write_bytes(spoilt)
        assert same(worked(path, pieces())[0], whole)


def grown(M: Tensor) -> Tensor:
    return 2 * M


def test_an_answer_is_kept_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST", 0.0)
    monkeypatch.setattr(module, "RATE", 1e12)
    for _ in range(2):
        workers = Workers(None)
        with workers.keeping(Journal(tmp_path / "stage.journal", "this")):
            for answer in run(grown, [torch.ones(3)] * 3, workers):
                assert torch.equal(answer, torch.full((3,), 2.0))
                answer.zero_()


def test_short_pieces_and_large_answers_are_not_written(tmp_path):
    path = tmp_path / "stage.journal"
    worked(path, pieces())  # some microseconds each
    assert path.stat().st_size < 100
