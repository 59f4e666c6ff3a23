# Two commands matter: `make demo` (see it work on real CMS events) and `make test` (prove that it works).
# Everything happens inside .venv; nothing outside this folder is touched.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Any Python from 3.10 on: `make test PYTHON=python3.12`.
PYTHON ?= $(shell scripts/find-python)
VENV ?= .venv
BIN := $(VENV)/bin
# The stamp names the interpreter, so that `make PYTHON=...` never reuses another one's environment by accident.
STAMP := $(VENV)/.installed-$(shell $(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null)
PYTEST_ARGS ?=
# One process per batch system, and one for all other tests (tests/conftest.py). Empty: everything in one.
PYTEST_SPREAD ?= -n 4 --dist loadgroup
# Whose workers the demo uses: `make demo BATCH=slurm`, or with a site file: `make demo BATCH=condor SITE=site.toml`.
BATCH ?= local
DEMO_ARGS := --batch $(BATCH) $(if $(SITE),-C $(SITE))

.PHONY: help test lint types unit demo demo-data wheel test-all-pythons clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

$(STAMP): pyproject.toml scripts/make-venv
	@scripts/make-venv "$(PYTHON)" "$(VENV)" ".[dev,demo]"
	@touch $@

test: lint types unit ## lint, types and all tests

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy
	$(BIN)/mypy examples

unit: $(STAMP) ## pytest only; PYTEST_ARGS="-k name" narrows it
	$(BIN)/python -m pytest $(PYTEST_SPREAD) $(PYTEST_ARGS)

demo: $(STAMP) demo-data ## a factory, local workers (or BATCH=condor, slurm, ...) and real CMS events, ending in a plot
	$(BIN)/python -m examples.demo $(DEMO_ARGS)

demo-data: $(STAMP) ## fetch and check the demo's input files (2 MB kept)
	$(BIN)/python -m examples.demo.fetch_data

wheel: $(STAMP) ## build dist/*.whl and dist/*.tar.gz
	$(BIN)/python -m build --outdir dist .

test-all-pythons: ## the tests with every Python 3.10+ found, or PYTHONS="python3.10 python3.13"
	@scripts/test-all-pythons $(PYTHONS)

clean: ## remove what make made (not the demo's output)
	rm -rf .venv .venv-* dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
