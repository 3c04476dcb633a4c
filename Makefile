# make train: set up, train digits, print the result. make test: set up, lint, run the tests.
PYTHON ?= python3
WORKDIR ?= runs/digits
BIN := .venv/bin

.PHONY: train test lint format benchmark clean

train: .venv/ready
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(WORKDIR)
	$(BIN)/python eval.py --workdir=$(WORKDIR)

test: lint
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The model's speed on this machine, with and without the depthwise form made for CPUs.
benchmark: .venv/ready
	$(BIN)/python -m effnet_jax.tools.benchmark model --csv=results/benchmark_model.csv

.venv/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache
