# Two commands set up everything on a machine with python3, venv and make:
#   make run    install, fetch the data, run the main job (CONFIG=configs/other.yaml for another)
#   make test   install, run the tests
CONFIG ?= configs/sparsity.yaml
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint format clean bench-solver
run: .venv/run
	$(BIN)/simplicit run $(CONFIG)

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: .venv/dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

format: .venv/dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ .venv/run

clean:
	rm -rf .venv .venv-bench

# compares the solver with others; BENCH chooses (see benchmarks/solver/__main__.py)
.venv-bench/ready: benchmarks/solver/requirements.txt benchmarks/solver/torch.txt pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --requirement benchmarks/solver/requirements.txt --editable .
	touch $@

bench-solver: .venv-bench/ready
	.venv-bench/bin/python benchmarks/solver $(BENCH)
