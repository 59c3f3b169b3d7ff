# Everything is made here: `make demo` and `make test` need a Debian 12 with Python 3.11, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The tests of Docker nodes and those of Slurm wait most of the time, each on a worker of their own; two have the processors.
PYTEST_WORKERS ?= 4

.DEFAULT_GOAL := help
.PHONY: help setup demo test check fmt bench docs cluster-up cluster-down slurm-up slurm-down clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(STAMP)  ## make .venv with tfjob and everything its tests need

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tfjob needs Python 3.11 or newer; this is " + sys.version.split()[0])'
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); ./tests/setup/install-venv.sh && $(PYTHON) -m venv $(VENV); }

$(STAMP): pyproject.toml $(VENV)/bin/python
	@echo "installing tfjob and what its tests need into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## train a real model on handwritten digits, from nothing to a SavedModel
	@$(BIN)/tfjob submit specs/digits.yml
	@echo "  shell     . $(BIN)/activate     (then \`tfjob\` is a command of this shell)"

test: check  ## all checks, then every test, on real parts
	$(BIN)/python tests/suite.py $(PYTEST_WORKERS)

check: $(STAMP)  ## format, lint, types, the direction of imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP)  ## put the code in form
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(STAMP)  ## the measurements, as ratios against peers in the same run
	$(BIN)/python tests/bench/run.py
	$(BIN)/python tests/bench/environments.py
	$(BIN)/python tests/bench/slurm.py
	$(BIN)/python tests/bench/datasets.py
	$(BIN)/python tests/bench/several_machines.py

docs: $(STAMP)  ## make the generated pages of the reference
	$(BIN)/python docs/generate.py

cluster-up: $(STAMP)  ## start three virtual nodes with Docker Engines: the target docker-lab
	@$(BIN)/python tests/cluster_parts.py up

cluster-down: $(STAMP)  ## end them
	@$(BIN)/python tests/cluster_parts.py down

slurm-up: $(STAMP)  ## start Slurm on the same nodes: the target slurm-lab
	@$(BIN)/python tests/slurm_parts.py up

slurm-down: $(STAMP)  ## end it
	@$(BIN)/python tests/slurm_parts.py down

clean:  ## remove what was made here, but no run
	@[ -z "$$(ls -d .cache/*cluster 2>/dev/null)" ] || [ ! -x $(BIN)/python ] || $(BIN)/python tests/cluster_parts.py down
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
