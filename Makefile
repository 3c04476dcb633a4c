# Each target creates the environment that it needs, then runs:
#   make train        trains on digits and prints the result (README.md)
#   make test         ruff and the tests (docs/develop.md)
#   make study-small  6 runs of the scaling study, their figures and the page (docs/scaling_study.md)
#   make plan         what B0 and B7 need on TPUs (docs/plan.md); takes hours on two cores
PYTHON ?= python3
WORKDIR ?= runs/digits
STUDY ?= runs/study
# The coefficients that the grid search of the committed study found.
SCALING := results/scaling_study/scaling.json
BIN := .venv/bin

.PHONY: train test soak soak-bucket parity lint format benchmark benchmark-loop benchmark-data
.PHONY: plan study study-small clean

train: .venv/ready
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(WORKDIR)
	$(BIN)/python eval.py --workdir=$(WORKDIR)

test: lint
	$(BIN)/python -m pytest

# A run of two processes, one of which is killed 20 times at random.
soak: .venv/ready
	SOAK_ROUNDS=20 $(BIN)/python -m pytest -n 0 -s tests/test_soak.py

# A run in an emulated bucket, killed 10 times at random while some of its requests fail.
soak-bucket: .venv/ready
	SOAK_ROUNDS=10 $(BIN)/python -m pytest -n 0 -s tests/soak_bucket.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The base, resolution alone and compound scaling at twice the cost, with 2 seeds each.
study-small: .venv/ready
	$(BIN)/python -m effnet_jax sweep --config=$(SCALING) --config.epochs=4.0 \
		--sweep=seeds:2,methods:1.9,resolution,compound --workdir=$(STUDY)-small
	$(BIN)/python -m effnet_jax report --results $(STUDY)-small/results.csv \
		--out=$(STUDY)-small/report

# All of docs/scaling_study.md: the grid search, every method at 1x, 2x and 4x, and the page.
study: .venv/ready
	$(BIN)/python -m effnet_jax search_scaling --config=configs/cluttered_digits.py \
		--step=0.15 --tolerance=0.09 --seeds=2 --workdir=$(STUDY)/grid
	$(BIN)/python -m effnet_jax sweep --config=$(STUDY)/grid/scaling.json \
		--sweep=seeds:3,methods:1.9,4.2 --workdir=$(STUDY)/methods
	$(BIN)/python -m effnet_jax report \
		--results $(STUDY)/grid/results.csv $(STUDY)/methods/results.csv --out=$(STUDY)/report

# The model's speed on this machine, with the operations made for it and with the plain ones.
benchmark: .venv/ready
	$(BIN)/python -m benchmarks model --csv=results/throughput.csv

# What the training loop costs beside the compiled step: on 1 device, on 8, and on 2 processes of 4.
LOOP := $(BIN)/python -m benchmarks loop --csv=results/benchmark_loop.csv
benchmark-loop: DEVICES := XLA_FLAGS=--xla_force_host_platform_device_count
benchmark-loop: TWO := --coordinator_address=localhost:9876 --num_processes=2
benchmark-loop: .venv/ready
	$(LOOP)
	$(DEVICES)=8 $(LOOP)
	$(DEVICES)=4 $(LOOP) $(TWO) --process_id=1 & $(DEVICES)=4 $(LOOP) $(TWO) --process_id=0

# The input pipeline against tf.data and PyTorch, which have an environment of their own.
benchmark-data: .venv/ready runs/photos/ready
	$(BIN)/python -m benchmarks.compare_data --photos=runs/photos --whole_images \
		--peers_python=.venv-benchmarks/bin/python --csv=results/data_comparison.csv

runs/photos/ready: .venv-benchmarks/ready benchmarks/make_photos.py
	rm -rf runs/photos
	.venv-benchmarks/bin/python benchmarks/make_photos.py runs/photos
	touch $@

.venv-benchmarks/ready: benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-benchmarks
	.venv-benchmarks/bin/python -m pip install --quiet --upgrade pip
	.venv-benchmarks/bin/python -m pip install --quiet -r benchmarks/requirements.txt
	touch $@

# Our networks against timm's in PyTorch, which has an environment of its own.
parity: .venv-parity/ready
	.venv-parity/bin/python -m benchmarks.parity --csv=results/parity.csv

.venv-parity/ready: requirements.txt benchmarks/parity_requirements.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --upgrade pip
	.venv-parity/bin/python -m pip install --quiet -r benchmarks/parity_requirements.txt
	touch $@

# libtpu has an environment of its own, because with it JAX looks for a TPU at every start.
plan: .venv-plan/ready
	for model in b0,128 b7,16; do \
		.venv-plan/bin/python -m effnet_jax plan --topology=v5e:2x2,v5e:4x4 \
			--config=configs/imagenet.py:$${model%,*} --batch_per_chip=$${model#*,} || exit; \
	done

.venv-plan/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-plan
	.venv-plan/bin/python -m pip install --quiet --upgrade pip
	.venv-plan/bin/python -m pip install --quiet -r requirements.txt
	.venv-plan/bin/python -m pip install --quiet -e '.[tpu-plan]'
	touch $@

.venv/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install -qq --no-deps -e .
	touch $@

clean:
	rm -rf .venv .venv-benchmarks .venv-parity .venv-plan .pytest_cache .ruff_cache
