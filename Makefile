# `make run` is all that a first look needs; `make help` lists the rest.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NODE := clients/js/node_modules/.package-lock.json

.DEFAULT_GOAL := help
.PHONY: help venv run demo test check fmt mutants bench soak faults clean

help:  ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

venv: $(STAMP)  ## Make .venv with treewire and what its development needs

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

run: venv  ## Follow this repository until Ctrl-C
	$(BIN)/treewire up .

demo: venv  ## Scripted agents in temporary worktrees, until Ctrl-C
	$(BIN)/treewire demo

test: venv $(NODE)  ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What the tests of the JavaScript client need. Without npm they say that they were skipped.
$(NODE): clients/js/package-lock.json
	if command -v npm >/dev/null; then cd clients/js && npm ci --silent --no-audit --no-fund; fi
	if test -e $@; then touch $@; fi

check: venv  ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: venv  ## Format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

mutants: venv  ## Break the rules of the merge one by one; each must be caught
	$(BIN)/python -m tests.laws.mutants

bench: venv  ## Measure, one line per figure
	$(BIN)/python -m benchmarks

SOAK_MINUTES ?= 10
SOAK_OUT ?= build/soak

soak: venv  ## Run all of it under load for SOAK_MINUTES; fail if anything grows
	$(BIN)/python -m pip install --quiet --group soak
	$(BIN)/python -m tests.soak --minutes $(SOAK_MINUTES) --out $(SOAK_OUT)

FAULTS ?= 1000
SEED ?= 1

faults: venv  ## Break a whole deployment FAULTS times at random; fail if a promise breaks
	$(BIN)/python -m tests.faults --faults $(FAULTS) --seed $(SEED)

clean:  ## Remove what the other targets made
	rm -rf .venv clients/js/node_modules build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
