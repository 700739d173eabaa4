"""Who takes batches and rows changes no bit of the model: this thread, others, or processes."""

from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from kinds import NETWORKS, inputs, quick_fit, same
from simplicit.recipe import Recipe

RECIPES = {
    "chosen": Recipe(sparsity=0.6),
    "eliminated": Recipe(sparsity=0.6, support="elimination"),
    "relaxed": Recipe(sparsity=0.6, support="relaxation"),
    "no budget": Recipe(),
}


@pytest.fixture(autouse=True)
def _everything_is_handed_out(monkeypatch):
    monkeypatch.setattr("simplicit.workers.run.LIGHT", 0.0)


def check(kind: str, recipe: str, *executors: Executor) -> None:
    u = inputs(kind)
    one = quick_fit(kind, RECIPES[recipe], u, batch_size=8)
    for executor in executors:
        many = quick_fit(kind, RECIPES[recipe], u, batch_size=8, executor=executor)
        assert same(many.model, one.model)
        assert [row["status"] for row in many.rows] == [row["status"] for row in one.rows]


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        *(("eliminated", "matrices"), ("eliminated", "convolutions"), ("relaxed", "matrices")),
        *(("relaxed", "tokens"), ("no budget", "convolutions"), ("no budget", "kept operations")),
    ],
)
def test_threads_give_the_bits_of_one_worker(recipe, kind):
    with ThreadPoolExecutor(2) as threads:
        check(kind, recipe, threads)


@pytest.mark.parametrize("kind", NETWORKS)
def test_threads_and_processes_give_the_bits_of_one_worker(kind, processes):
    with ThreadPoolExecutor(2) as threads:
        check(kind, "chosen", threads, processes)
