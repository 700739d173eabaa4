"""Who takes batches and rows changes no bit of the model: this thread, others, or processes."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch

from kinds import NETWORKS, inputs, quick_fit, same
from simplicit.recipe import Recipe

RECIPES = {
    "chosen": Recipe(sparsity=0.6),
    "eliminated": Recipe(sparsity=0.6, support="elimination"),
    "relaxed": Recipe(sparsity=0.6, support="relaxation"),
    "no budget": Recipe(),
}


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        yield executor


@pytest.mark.parametrize("kind", list(NETWORKS))
@pytest.mark.parametrize("recipe", RECIPES)
def test_threads_and_processes_give_the_bits_of_one_worker(kind, recipe, processes):
    u = torch.cat([inputs(kind)] * 2)  # enough for several batches
    one = quick_fit(kind, RECIPES[recipe], u, batch_size=8)
    with ThreadPoolExecutor(2) as threads:
        for executor in (threads, processes) if recipe == "chosen" else (threads,):
            many = quick_fit(kind, RECIPES[recipe], u, batch_size=8, executor=executor)
            assert same(many.model, one.model)
            assert [row["status"] for row in many.rows] == [row["status"] for row in one.rows]
